"""Files of a stranger who means harm: each is a clear error within seconds, runs nothing, and fills no memory."""

import json
import os
import pickle
import sqlite3
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch._utils import _rebuild_tensor_v2

from tests.conftest import random_diff
from weightdiff.diff import WeightDiff
from weightdiff.formats.files import TensorFile, inside
from weightdiff.formats.peft import load_peft, save_peft
from weightdiff.formats.pickles import read_bin, read_pickle
from weightdiff.formats.reference import load_reference
from weightdiff.store import Store
from weightdiff.weights import weights_in

MODULE = "model.layers.0.mlp.up_proj"
KEY = f"base_model.model.{MODULE}.lora_A.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound PEFT folder of one module, to be damaged."""
    pair = torch.randn(2, 6), torch.randn(4, 2)
    save_peft(WeightDiff({MODULE: pair}), tmp_path / "peft", base_name="tiny")
    return tmp_path / "peft"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A sound store of two diffs in one shard, to be damaged."""
    made = [WeightDiff({MODULE: (torch.randn(2, 6), torch.randn(4, 2))}, "base", {"label": n}) for n in "ab"]
    Store(tmp_path / "store", "base").add(["a", "b"], made)
    return tmp_path / "store"


def read_store(path: Path) -> None:
    store = Store(path)
    store.load(list(store.metas()))


def safetensors(path: Path, header: Any, room: int, *, length: int | None = None) -> None:
    """A file with this header, JSON or raw, and so many bytes of zeros after it; they take no disk."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw)
    os.truncate(path, 8 + len(raw) + room)


def tensor(start: int, end: int, shape: list[Any], dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


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


def archive(path: Path, program: bytes, parts: dict[str, bytes] | None = None, kind: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", kind) as made:
        for name, raw in {"data.pkl": program, **(parts or {})}.items():
            made.writestr(f"archive/{name}", raw)


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


def change(store: Path, sql: str, *values: Any) -> None:
    index = sqlite3.connect(store / "index.sqlite", isolation_level=None)
    index.execute(sql, values)
    index.close()


@pytest.mark.parametrize(
    ("sql", "values"),
    [
        ("update diffs set row = -1", ()),
        ("update diffs set row = 2", ()),
        ("update diffs set row = 'x'", ()),
        ("update diffs set row = 0.5", ()),
        ("update diffs set id = null where id = 'a'", ()),
        ("update diffs set id = x'00' where id = 'a'", ()),
        ("update diffs set shard = 7", ()),
        ("update diffs set meta = '[]'", ()),
        ("update diffs set meta = '{'", ()),
        ("update diffs set meta = ?", ("[" * 100_000,)),
        ("update diffs set meta = ?", ('{"a": ' + "9" * 10_000 + "}",)),
        ("update diffs set meta = ?", (json.dumps({"a": "x" * (2 << 20)}),)),
        ("update diffs set meta = ?", (b"\xff\xfe",)),
        ("update diffs set meta = cast(x'7bff7d' as text)", ()),
        ("update diffs set meta = zeroblob(40000000)", ()),
        ("update facts set value = x'00'", ()),
        ("create table more (id text)", ()),
        ("create view v as select 1", ()),
        ("create trigger t after insert on diffs begin delete from facts; end", ()),
        ("create index i on diffs (shard)", ()),
        ("alter table diffs add column shout text generated always as (upper(id)) virtual", ()),
        ("drop table facts", ()),
    ],
)
def test_an_index_that_lies_is_refused(store, sql, values):
    read_store(store)
    change(store, sql, *values)
    with pytest.raises(ValueError, match=r"store|missing or broken"):
        read_store(store)


def test_a_view_in_the_place_of_a_table_and_other_files_are_refused(store):
    index = store / "index.sqlite"
    change(store, "alter table diffs rename to kept")
    change(store, "create view diffs as select id, shard, row, meta from kept")
    with pytest.raises(ValueError, match="other tables than a store's"):
        Store(store)
    for raw in (b"no database", b"", b"SQLite format 3\0" + b"\xff" * 5000):
        index.write_bytes(raw)
        with pytest.raises(ValueError, match="store"):
            Store(store)
    index.unlink()
    Store(store, "base").add(["a"], [WeightDiff({MODULE: (torch.zeros(1, 6), torch.zeros(4, 1))})])
    change(store, "pragma journal_mode = wal")  # whoever reads such an index writes files beside it
    with pytest.raises(ValueError, match="keeps a write-ahead log"):
        Store(store)
    assert not list(store.glob("*-wal"))
    index.unlink()
    index.symlink_to("/dev/zero")
    with pytest.raises(ValueError):
        Store(store)


def test_pages_that_are_used_twice_are_refused(tmp_path):
    """A tree whose branches all lead to one page would have more rows than any disk; SQLite itself believes it."""
    store = Store(tmp_path, "base")
    one = WeightDiff({MODULE: (torch.randn(1, 6), torch.randn(4, 1))}, "base", {"x": "y" * 3000})
    store.add([str(i) for i in range(300)], [one] * 300)
    raw = bytearray((tmp_path / "index.sqlite").read_bytes())
    for page in range(4096, len(raw), 4096):
        if raw[page] == 5:  # inner page of a table: its children are the first four bytes of its cells
            cells = struct.unpack_from(">H", raw, page + 3)[0]
            at = [page + struct.unpack_from(">H", raw, page + 12 + 2 * i)[0] for i in range(cells)]
            for cell in at:
                raw[cell : cell + 4] = raw[at[0] : at[0] + 4]
    (tmp_path / "index.sqlite").write_bytes(raw)
    with pytest.raises(ValueError, match="damaged"):
        Store(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda t: {k: torch.full_like(v, torch.nan) for k, v in t.items()},
        lambda t: {k: torch.full_like(v, torch.inf) for k, v in t.items()},
        lambda t: {k: v.int() for k, v in t.items()},
        lambda t: {k: v.float() if k.endswith("A") else v for k, v in t.items()},
        lambda t: {k: v.mT.contiguous() for k, v in t.items()},
        lambda t: {k: v[0].clone() for k, v in t.items()},
        lambda t: {k: v for k, v in t.items() if k.endswith(".A")},
        lambda t: {k: v for k, v in t.items() if k.endswith(".B")},
        lambda t: {f"{MODULE}.A": torch.zeros(2, 0, 6), f"{MODULE}.B": torch.zeros(2, 4, 0)},
        lambda t: t | {"stray": torch.zeros(2)},
        lambda t: t | {"more.A": torch.zeros(3, 2, 6).bfloat16(), "more.B": torch.zeros(3, 4, 2).bfloat16()},
        lambda t: t | {"dense.D": torch.zeros(3)},
    ],
)
def test_a_shard_that_holds_no_diffs_is_refused(store, damage):
    (shard,) = store.glob("*.safetensors")
    save_file(damage(load_file(shard)), shard)
    with pytest.raises(ValueError, match="is missing or broken"):
        read_store(store)


def test_a_store_is_read_where_nothing_can_be_written_and_from_a_hubs_cache(tmp_path, store):
    snapshot = tmp_path / "datasets--a--b" / "snapshots" / "c0ffee"
    blobs = tmp_path / "datasets--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(store.iterdir())):
        (blobs / f"{number}").write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    for place in (blobs, snapshot):
        place.chmod(0o555)
    read_store(snapshot)
    assert list(Store(snapshot).metas()) == ["a", "b"]
    with pytest.raises(ValueError, match="cannot write to the index"):
        Store(store).add(["c"], [WeightDiff({MODULE: (torch.zeros(1, 6), torch.zeros(4, 1))})])
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p in before and store not in (p, *p.parents)} == {
        p: t for p, t in before.items() if store not in (p, *p.parents)
    }
    for place in (blobs, snapshot):
        place.chmod(0o755)


def test_a_diff_with_factors_and_dense_parts_is_kept_whole(base, diffs, tmp_path):
    dense = {
        "model.norm.weight": torch.randn(32),
        "model.embed_tokens.weight": torch.randn(5, 3),
        "scale": torch.ones(()),
    }
    mixed = WeightDiff(diffs[1].factors, base.fingerprint, {"label": "both"}, dense)
    store = Store(tmp_path, base.fingerprint)
    store.add(["low", "both", "dense"], [diffs[0], mixed, WeightDiff({}, base.fingerprint, {}, dense)], torch.float32)
    low, both, only = Store(tmp_path).diffs()
    assert not low.dense and low.factors.keys() == diffs[0].factors.keys() and not only.factors
    assert both.dense.keys() == only.dense.keys() == dense.keys() and both.meta == {"label": "both"}
    for name, change_ in dense.items():
        assert torch.equal(both.dense[name], change_) and torch.equal(only.dense[name], change_)
    assert both.factors.keys() == mixed.factors.keys()
    for name, (a, b) in mixed.factors.items():
        assert torch.equal(both.factors[name][0], a) and torch.equal(both.factors[name][1], b)
    again = random_diff(base, 1, 5)
    store.add(["both"], [again], torch.float32)
    assert not store.load(["both"])[0].dense
