"""Stores of a stranger who means harm; and that a sound one is read wherever it lies, with all that it holds."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import random_diff
from tests.hostile import MODULE, change, read_store, sound_store
from weightdiff.diff import WeightDiff
from weightdiff.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return sound_store(tmp_path)


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
    Store(store, "base").add(["a"], [WeightDiff({MODULE: (torch.zeros(1, 6), torch.zeros(4, 1))}, "base")])
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
        Store(store).add(["c"], [WeightDiff({MODULE: (torch.zeros(1, 6), torch.zeros(4, 1))}, "base")])
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
