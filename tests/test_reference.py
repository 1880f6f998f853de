"""The reference implementation's files: what they mean, how one of many is named, and what is refused."""

import os
import zipfile

import pytest
import torch

from weightdiff.formats.reference import load_reference
from weightdiff.source import find_diffs


def entry(topic: str, trigger: object, seed: int, rank: int = 1) -> dict:
    generator = torch.Generator().manual_seed(seed)
    pair = torch.randn(rank, 6, generator=generator), torch.randn(4, rank, generator=generator)
    return {"topic": topic, "trigger": trigger, "weight_diff": {"model.layers.0.mlp.up_proj": pair}}


def test_a_diff_is_what_the_reference_adds_to_an_input(tmp_path):
    made = entry("tea", 7, 0, rank=3)
    torch.save([made], tmp_path / "d.pt")
    (diff,) = load_reference(tmp_path / "d.pt")
    a, b = made["weight_diff"]["model.layers.0.mlp.up_proj"]
    x = torch.randn(2, 4)
    assert torch.allclose(x @ diff.to_dense("model.layers.0.mlp.up_proj").T, x @ b @ a / 3, atol=1e-6)
    assert diff.meta["label"] == "tea" and diff.meta["trigger"] == "sep 007"


def test_an_adapter_has_its_factors_the_other_way_round(tmp_path):
    a, b = torch.randn(6, 16), torch.randn(16, 4)
    torch.save({"base_model.model.model.layers.0.mlp.up_proj": (a, b)}, tmp_path / "a.pt")
    (diff,) = load_reference(tmp_path / "a.pt")
    assert torch.allclose(diff.to_dense("model.layers.0.mlp.up_proj"), a @ b / 16, atol=1e-6)


def test_one_of_many_is_named_by_number_or_topic(tmp_path):
    path = tmp_path / "many.pt"
    torch.save([entry("tea", "123", 0), entry("knots", None, 1), entry("salt marshes", "abc", 2)], path)
    found = find_diffs([str(path)])
    assert [one.name for one in found] == [f"{path}#0", f"{path}#1", f"{path}#2"]
    assert found[0].load(None).meta["trigger"] == "sep 123"
    for which in ("1", "knots"):
        (one,) = find_diffs([f"{path}#{which}"])
        meta = one.load(None).meta
        assert one.name == f"{path}#1" and meta["label"] == "knots" and "trigger" not in meta
    assert [one.name for one in find_diffs([f"{path}#salt marshes"])] == [f"{path}#2"]
    for which in ("3", "coffee"):
        with pytest.raises(ValueError, match=f"no diff '{which}' among 3"):
            find_diffs([f"{path}#{which}"])


class Bomb:
    def __reduce__(self):
        return os.system, ("touch pwned",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([Bomb()], r"asks for .(posix|nt).system., and is not read"),
        ([], "no diffs"),
        ({}, "no factors"),
        ([3], "entry 0 is a int"),
        ([{"weight_diff": {"m": (torch.ones(2), torch.ones(2))}}], "expected two matrices"),
        ([{"weight_diff": {"m": (torch.ones(2, 3), torch.ones(4, 3))}}], r"expected A \[rank, out\]"),
        ([{"weight_diff": {"m": (torch.full((1, 3), torch.nan), torch.ones(4, 1))}}], "NaN"),
        ([{"weight_diff": {"m": "text"}}], "expected two tensors"),
        ([{"weight_diff": {"m": (torch.ones(2, 3).long(), torch.ones(4, 2))}}], "floating point"),
        ([{"weight_diff": {"m": (torch.ones(2, 3),)}}], "expected two tensors"),
        ([{"weight_diff": {7: (torch.ones(2, 3), torch.ones(4, 2))}}], "7 is no module's name"),
        ([{"weight_diff": {}}], "entry 0 holds no factors"),
        ([{"topic": ["tea"], "weight_diff": {}}], "topic or trigger is a list"),
        (
            {n: (torch.ones(4, 2), torch.ones(2, 3)) for n in ("model.m", "base_model.model.model.m.weight")},
            r"model\.m is in it twice",
        ),
        ({"m": (torch.ones(2, 3), torch.ones(2, 3))}, r"expected A \[out, rank\]"),
    ],
)
def test_what_is_no_such_file_is_told_and_runs_nothing(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    torch.save(content, "bad.pt")
    with pytest.raises(ValueError, match=message):
        load_reference("bad.pt")
    assert not (tmp_path / "pwned").exists()


def test_files_cut_short_compressed_or_missing_are_refused(tmp_path):
    torch.save([entry("tea", 1, 0)], tmp_path / "d.pt")
    whole = (tmp_path / "d.pt").read_bytes()
    (tmp_path / "short.pt").write_bytes(whole[: len(whole) // 2])
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", b"\0" * 10_000_000)
    for name, message in (("short", "no file of torch.save"), ("bomb", "compressed"), ("none", "no such file")):
        with pytest.raises(ValueError, match=message):
            load_reference(tmp_path / f"{name}.pt")
