"""Files of a stranger who means harm: each is a clear error within seconds, runs nothing, and fills no memory."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.hostile import KEY, MODULE, archive, change, read_store, safetensors, sound_folder, sound_store, tensor
from weightdiff.files import TensorFile, inside
from weightdiff.formats.peft import load_peft
from weightdiff.weights import weights_in


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return sound_folder(tmp_path)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return sound_store(tmp_path)


def good(room: int) -> dict[str, Any]:
    return {"a": tensor(0, room, [room // 4])}


LIES: dict[str, tuple[Any, int, int | None]] = {
    "a header longer than the file": (good(8), 8, 10**6),
    "a header of 2^63 bytes": (good(8), 8, 2**63),
    "an empty header": (b"", 8, None),
    "tensors that overlap": ({"a": tensor(0, 8, [2]), "b": tensor(4, 12, [2])}, 12, None),
    "tensors in one place": ({"a": tensor(0, 8, [2]), "b": tensor(0, 8, [2])}, 8, None),
    "a hole": ({"a": tensor(0, 8, [2]), "b": tensor(12, 20, [2])}, 20, None),
    "bytes left over": (good(8), 9, None),
    "bytes that aren't there": (good(8), 7, None),
    "a shape larger than its bytes": ({"a": tensor(0, 8, [3])}, 8, None),
    "a size below zero": ({"a": tensor(0, 8, [-2])}, 8, None),
    "two sizes below zero": ({"a": tensor(0, 8, [-2, -1])}, 8, None),
    "an offset below zero": ({"a": tensor(-8, 0, [2])}, 8, None),
    "offsets the wrong way round": ({"a": tensor(8, 0, [2])}, 8, None),
    "a huge size": ({"a": tensor(0, 8, [10**30])}, 8, None),
    "sizes whose product is huge": ({"a": tensor(0, 8, [2**47] * 100_000)}, 8, None),
    "a size that is no integer": ({"a": tensor(0, 8, [2.0])}, 8, None),
    "a size that is true": ({"a": tensor(0, 4, [True])}, 4, None),
    "an unknown type": ({"a": tensor(0, 8, [2], "Q4")}, 8, None),
    "a type that is a list": ({"a": tensor(0, 8, [2], [])}, 8, None),
    "an entry that is a list": ({"a": [0, 8]}, 8, None),
    "an entry without a shape": ({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, 8, None),
    "one name twice": (b'{"a":%b,"a":%b}' % ((json.dumps(tensor(0, 8, [2])).encode(),) * 2), 8, None),
    "deep nesting": (b'{"a":' * 100_000 + b"0" + b"}" * 100_000, 0, None),
    "nesting in an entry": (b'{"a":' + b"[" * 900 + b"]" * 900 + b"}", 0, None),
    "millions of empty lists": (b'{"a":[' + b"[]," * 8_000_000 + b"[]]}", 0, None),
    "a list": ([], 0, None),
    "no JSON": (b"{'a': 0}", 0, None),
    "no UTF-8": (b'{"\xff\xfe": 0}', 0, None),
    "a number of a million digits": (b'{"a":' + b"9" * 10**6 + b"}", 0, None),
    "a name of a million letters": ({"a" * 10**6: tensor(0, 8, [2])}, 8, None),
    "integers": ({KEY: tensor(0, 8, [1, 2], "I32")}, 8, None),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused_by_every_reader(folder, store, lie):
    header, room, length = LIES[lie]
    (shard,) = store.glob("*.safetensors")
    for path in (folder / "adapter_model.safetensors", shard):
        safetensors(path, header, room, length=length)
    with pytest.raises(ValueError, match=r"adapter_model.safetensors"):
        load_peft(folder)
    with pytest.raises(ValueError, match=r"shard-\w+.safetensors is missing or broken"):
        read_store(store)


def test_a_header_without_lies_is_read(tmp_path):
    """What the lies are made with makes a sound file, so that it is the lie that is refused."""
    safetensors(tmp_path / "a", {"a": tensor(0, 8, [2]), "b": tensor(8, 12, [1, 1]), "__metadata__": {"x": "y"}}, 12)
    found = TensorFile(tmp_path / "a")
    assert found.metadata == {"x": "y"} and {k: v.shape for k, v in found.read_all()} == {"a": (2,), "b": (1, 1)}


def pair(a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
    return {KEY: a, KEY.replace("_A.", "_B."): b}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "factors"),
        (pair(torch.zeros(2, 6).long(), torch.zeros(4, 2)), "floating point"),
        (pair(torch.zeros(2, 6), torch.full((4, 2), torch.inf)), "infinite"),
        (pair(torch.full((2, 6), torch.nan), torch.zeros(4, 2)), "NaN"),
        (pair(torch.zeros(2, 6).double() + 1e300, torch.zeros(4, 2)), "infinite"),
        (pair(torch.zeros(0, 6), torch.zeros(4, 0)), MODULE),
        (pair(torch.zeros(6, 2), torch.zeros(2, 4)), MODULE),
        (pair(torch.zeros(6), torch.zeros(4)), MODULE),
        ({KEY: torch.zeros(2, 6)}, "lora_B"),
        (pair(torch.zeros(2, 6), torch.zeros(4, 2)) | {f"{MODULE}.lora_A.weight": torch.ones(2, 6)}, "twice"),
    ],
)
@pytest.mark.parametrize("old", [False, True])
def test_factors_that_are_none_are_refused(folder, tensors, message, old):
    if old:
        (folder / "adapter_model.safetensors").unlink()
        torch.save(tensors, folder / "adapter_model.bin")
    else:
        save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=message):
        load_peft(folder, allow_pickle=old)


LIMITED = """
import resource, sys, time
from pathlib import Path
from weightdiff.formats.peft import load_peft
from weightdiff.formats.reference import load_reference
from weightdiff.store import Store
held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + (1 << 30),) * 2)
readers = {
    "peft": load_peft, "pt": load_reference, "store": lambda path: list(Store(Path(path)).diffs())
}
for kind, path in zip(sys.argv[1::2], sys.argv[2::2]):
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        readers[kind](path)
    except ValueError as error:
        grown, took = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, time.monotonic() - start
        print("well" if grown < 600_000 and took < 10 else "badly", grown >> 10, "MB,", took, "s:", str(error)[:300])
"""


def test_a_giant_takes_no_memory_and_no_time(tmp_path, folder, store):
    """100 GB in a sparse file, as each kind of file; a million tensors; in a process that may take a gigabyte."""
    size = 100 << 30
    safetensors(folder / "adapter_model.safetensors", {KEY: tensor(0, size, [2, size // 8])}, size)
    (shard,) = store.glob("*.safetensors")
    half = size // 2
    ends = {f"{MODULE}.A": tensor(0, half, [1, 1, half // 4]), f"{MODULE}.B": tensor(half, size, [1, half // 4, 1])}
    safetensors(shard, ends, size)
    archive(tmp_path / "giant.pt", pickle.dumps([], 2))
    os.truncate(tmp_path / "giant.pt", size)
    whole = tmp_path / "whole.pt"
    archive(whole, pickle.dumps([], 2))
    raw = bytearray(whole.read_bytes())
    whole.write_bytes(b"")
    os.truncate(whole, size)
    with open(whole, "ab") as file:  # the same zip behind a hole of 100 GB
        file.write(raw)
    for name, count in (
        ("many", 10**6),
        ("fewer", 210_000),
    ):  # the header is too long; it isn't, and there are too many
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text((folder / "adapter_config.json").read_text())
        entry = '"%d":{"dtype":"F32","shape":[1],"data_offsets":[%d,%d]}'
        entries = ",".join(entry % (i, 4 * i, 4 * i + 4) for i in range(count))
        safetensors(tmp_path / name / "adapter_model.safetensors", f"{{{entries}}}".encode(), 4 * count)
    places = {
        "peft": [folder, tmp_path / "many", tmp_path / "fewer"],
        "store": [store],
        "pt": [tmp_path / "giant.pt", whole],
    }
    args = [word for kind, paths in places.items() for path in paths for word in (kind, str(path))]
    done = subprocess.run([sys.executable, "-c", LIMITED, *args], capture_output=True, text=True, timeout=60)
    lines = done.stdout.splitlines()
    assert len(lines) == 6 and all(line.startswith("well") for line in lines), done


def test_names_and_links_that_lead_outside_are_refused(tmp_path, folder, store):
    secret = tmp_path / "secret.safetensors"
    (folder / "adapter_model.safetensors").rename(secret)
    (folder / "adapter_model.safetensors").symlink_to(secret)
    with pytest.raises(ValueError, match="link out of its folder"):
        load_peft(folder)
    (shard,) = store.glob("*.safetensors")
    shard.rename(tmp_path / shard.name)
    shard.symlink_to(tmp_path / shard.name)
    with pytest.raises(ValueError, match="link out of its folder"):
        read_store(store)
    shard.unlink()
    shard.symlink_to(shard)
    with pytest.raises(ValueError, match="can't be read"):
        read_store(store)
    for name in ("../secret.safetensors", str(secret), "shard-/../../secret.safetensors", "a\0b"):
        with pytest.raises(ValueError):
            inside(folder, name)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {KEY: name}}))
        with pytest.raises(ValueError):
            weights_in(folder)
    for name in (f"../{shard.name}", str(tmp_path / shard.name), "shard-/../../secret.safetensors", "index.sqlite"):
        change(store, "update diffs set shard = ?", name)
        with pytest.raises(ValueError, match="no shard of a store"):
            read_store(store)


def test_what_would_be_waited_for_is_refused(folder, store):
    (shard,) = store.glob("*.safetensors")
    for path in (folder / "adapter_model.safetensors", shard):
        path.unlink()
        os.mkfifo(path)
    with pytest.raises(ValueError):
        load_peft(folder)
    with pytest.raises(ValueError, match="no regular file"):
        TensorFile(folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="no regular file"):
        read_store(store)
