"""Pickles of a stranger who means harm: each is a clear error, runs nothing, and makes no more than its file has."""

import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._utils import _rebuild_tensor_v2

from tests.hostile import KEY, archive, sound_folder
from weightdiff.formats.peft import load_peft
from weightdiff.formats.reference import load_reference
from weightdiff.pickles import read_bin, read_pickle


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return sound_folder(tmp_path)


class Bomb:
    """Pickled as a call of `function` with these arguments."""

    def __init__(self, function: Callable, *arguments: Any):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def expanded() -> torch.Tensor:
    return torch.zeros(1).as_strided((10**6, 10**6), (0, 0))


def larger_than_its_storage() -> Any:
    """torch's own reader, with `weights_only=True`, makes 4 GB of this."""
    return Bomb(_rebuild_tensor_v2, torch.zeros(1).storage(), 0, (10**9,), (1,), False, {})


def same_list_again() -> Any:
    value: list[Any] = []
    for _ in range(60):
        value = [value, value]
    return value


def many_views() -> Any:
    whole = torch.zeros(1000)
    return [whole[:] for _ in range(10_000)]


def one_tensor_often() -> Any:
    return [torch.zeros(100_000)] * 100


def of_itself() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


BOMBS: dict[str, tuple[Callable[[], Any], str]] = {
    "os.system": (lambda: Bomb(os.system, "touch pwned"), r"asks for '(posix|nt)\.system', .*Nothing of it was run"),
    "eval": (lambda: Bomb(eval, "open('pwned', 'w')"), r"asks for '\w+\.eval'"),
    "a second one": (lambda: [torch.zeros(1), Bomb(os.system, "touch pwned")], "system"),
    "a bytearray": (lambda: Bomb(bytearray, 10**12), "bytearray"),
    "a tensor by its size": (lambda: Bomb(torch.Tensor, 10**6, 10**6), "torch.*Tensor"),
    "a storage by its size": (lambda: Bomb(torch.UntypedStorage, 10**12), "UntypedStorage"),
    "a tensor on no device": (lambda: torch.empty(10**6, 10**6, device="meta"), "meta"),
    "a sparse tensor": (lambda: torch.eye(3).to_sparse(), "sparse"),
    "a set": (lambda: {1, 2}, "set"),
    "an expanded tensor": (expanded, "larger than its storage"),
    "a tensor larger than its storage": (larger_than_its_storage, "larger than its storage"),
    "a list of a list of a list": (same_list_again, "uses one list twice"),
    "a list of itself": (of_itself, "uses one list twice"),
    "ten thousand views": (many_views, "more together than the file"),
    "one tensor a hundred times": (one_tensor_often, "more together than the file"),
    "a long key": (lambda: {"a" * 5000: 1}, "neither a number nor a text"),
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("place", ["bare", "diff", "factor"])
def test_a_pickle_that_asks_for_more_than_it_may_is_refused_and_runs_nothing(
    folder, tmp_path, monkeypatch, bomb, place
):
    monkeypatch.chdir(tmp_path)
    make, message = BOMBS[bomb]
    content = {"bare": make, "diff": lambda: [{"topic": make(), "weight_diff": {}}], "factor": lambda: {KEY: make()}}
    torch.save(content[place](), "bad.pt")
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(Path("bad.pt").read_bytes())
    with pytest.raises(ValueError, match=message):
        load_reference("bad.pt")
    with pytest.raises(ValueError, match=message):
        load_peft(folder, allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        load_peft(folder)
    assert not Path("pwned").exists()


def test_what_torch_saves_of_tensors_and_plain_containers_is_read_as_torch_reads_it(tmp_path):
    turned = torch.randn(3, 5).T
    state = torch.nn.Linear(3, 2).state_dict()  # an OrderedDict with a state
    content = {
        "list": [1, -(10**12), 0.5, True, None, "tea ☕", ("a", (2,))],
        "tensors": [turned, turned[1:, ::2], torch.zeros(0, 7), torch.tensor(3.0), torch.ones(2, dtype=torch.int64)],
        "parameter": torch.nn.Parameter(torch.randn(2)), "half": torch.randn(4).bfloat16(), "state": state, 7: {},
    }  # fmt: skip
    torch.save(content, tmp_path / "a.pt")
    ours, theirs = read_pickle(tmp_path / "a.pt"), torch.load(tmp_path / "a.pt", weights_only=True)
    assert ours["list"] == theirs["list"] and ours.keys() == theirs.keys()
    of = lambda c: [*c["tensors"], c["parameter"].detach(), c["half"], *c["state"].values()]  # noqa: E731
    for a, b in zip(of(ours), of(theirs), strict=True):
        assert torch.equal(a, b) and a.dtype == b.dtype and type(a) is torch.Tensor
    torch.save(state, tmp_path / "b.bin")
    assert all(torch.equal(t, state[name]) for name, t in read_bin(tmp_path / "b.bin").items())
    with pytest.raises(ValueError, match="'list' is a list"):
        read_bin(tmp_path / "a.pt")


def test_zips_that_unfold_overlap_or_hold_another_program_are_refused(tmp_path):
    path = tmp_path / "bad.pt"
    archive(path, b"\0" * 10_000_000, kind=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="compressed"):
        load_reference(path)
    archive(path, pickle.dumps([], 2), {f"data/{i}": b"\0" * 1000 for i in range(100)})
    raw = bytearray(path.read_bytes())
    at = raw.index(b"PK\1\2")
    while at >= 0:  # each part's size in the directory becomes that of the whole file
        if b"data/" in raw[at : at + 64]:
            raw[at + 20 : at + 28] = struct.pack("<2I", len(raw) // 2, len(raw) // 2)
        at = raw.find(b"PK\1\2", at + 4)
    path.write_bytes(raw)
    with pytest.raises(ValueError, match="overlap"):
        load_reference(path)
    archive(path, pickle.dumps({"a": [1]}, 4))
    with pytest.raises(ValueError, match="asks for the instruction FRAME"):
        load_reference(path)
    program = b"\x80\x02}K\x01q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"K\x01s."  # a key whose hash takes 2^60 steps
    archive(path, program)
    with pytest.raises(ValueError, match="uses one tuple twice"):
        load_reference(path)
    path.write_bytes(pickle.dumps(Bomb(os.system, "touch pwned"), 2))  # as before 2020, without a zip
    with pytest.raises(ValueError, match=r"no file of torch\.save"):
        load_reference(path)
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("word/document.xml", "no model")
    with pytest.raises(ValueError, match=r"no data\.pkl"):
        load_reference(path)
    directory = 90 << 30  # the zip's own word for the size of its list of parts; it lies in a hole of a sparse file
    path.write_bytes(b"")
    os.truncate(path, directory)
    with open(path, "ab") as file:
        file.write(b"PK\6\6" + struct.pack("<Q2H2I4Q", 44, 45, 45, 0, 0, 1, 1, directory, 0))
        file.write(b"PK\6\7" + struct.pack("<IQI", 0, directory, 1))
        file.write(b"PK\5\6" + struct.pack("<4H2IH", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0))
    with pytest.raises(ValueError, match="directory claims"):
        load_reference(path)


def test_a_pickle_of_empty_lists_takes_no_more_memory_than_its_file(tmp_path):
    path = tmp_path / "bad.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("bad/data.pkl", b"\x80\x02]q\x00(" + b"}" * 200_000 + b"e.")
    with pytest.raises(ValueError, match="lists and dicts take more memory"):
        read_pickle(path)
