"""Many diffs on disk: safetensors shards of stacked factors, and an SQLite index of what they are.

A shard is written whole under another name and then moved into place, and the index learns of it last; so a
shard that was being written when the process died is simply not there.
"""

import hashlib
import json
import sqlite3
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from weightdiff.atomic import replacing
from weightdiff.diff import WeightDiff, stack
from weightdiff.lazy import Lazy
from weightdiff.shard import names_in, read_row

_SCHEMA = """
create table if not exists diffs (id text primary key, shard text not null, row integer not null, meta text not null);
create table if not exists facts (key text primary key, value text not null);
"""


def is_store(path: str | Path) -> bool:
    """Is this folder a store of diffs?"""
    return (Path(path) / "index.sqlite").is_file()


class Store:
    """Diffs of one base model, by id.

    Args:
        path: folder; made if it isn't there.
        base: fingerprint of the base model, None to take it from the store.

    Raises:
        ValueError: the store belongs to another base model, or the folder can't be written or read.
    """

    def __init__(self, path: Path, base: str | None = None):
        self.path = Path(path)
        if base is None and not is_store(path):
            raise ValueError(f"{path} is no store of diffs: index.sqlite is missing. Make one with finetune.")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._index = sqlite3.connect(self.path / "index.sqlite", timeout=60)
            self._index.executescript(_SCHEMA)
            if base is not None:
                with self._index:
                    self._index.execute("insert or ignore into facts values ('base', ?)", (base,))
            row = self._index.execute("select value from facts where key = 'base'").fetchone()
        except (OSError, sqlite3.Error) as error:
            raise ValueError(f"cannot open the store {path}: {error}. Is it a folder you may write to?") from None
        self.base: str = row[0] if row else ""
        if base is not None and self.base != base:
            raise ValueError(
                f"the store {path} holds diffs of the base model {self.base}, and {base} was given. "
                "Use that base model, or another folder."
            )

    def add(self, ids: Sequence[str], diffs: Sequence[WeightDiff], dtype: torch.dtype = torch.bfloat16) -> None:
        """Write diffs as one shard, a dense one as a shard of its own; ids that exist are replaced.

        Args:
            ids: one id per diff.
            diffs: what to write.
            dtype: precision on disk.
        """
        if len(diffs) > 1 and any(d.dense for d in diffs):
            for identity, diff in zip(ids, diffs, strict=True):
                self.add([identity], [diff], dtype)
            return
        name = "shard-" + hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16] + ".safetensors"
        if diffs[0].dense:
            tensors = {f"{k}.D": v.to("cpu", dtype) for k, v in diffs[0].dense.items()}
        else:
            shapes = {k: (b.shape[0], a.shape[1]) for d in diffs for k, (a, b) in d.factors.items()}
            stacked = stack(diffs, shapes).to("cpu", dtype)
            tensors = {f"{k}.A": v for k, v in stacked.a.items()} | {f"{k}.B": v for k, v in stacked.b.items()}
        try:
            with replacing(self.path / name) as temporary:
                save_file({k: v.contiguous() for k, v in tensors.items()}, temporary)
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"cannot write to the store {self.path}: {error}. Is there space and permission?"
            ) from None
        rows = [(i, name, r, json.dumps(d.meta)) for r, (i, d) in enumerate(zip(ids, diffs, strict=True))]
        try:
            with self._index:
                self._index.executemany("insert or replace into diffs values (?, ?, ?, ?)", rows)
        except sqlite3.Error as error:
            raise ValueError(f"cannot write to the index of {self.path}: {error}. Is there space?") from None

    def ids(self) -> list[str]:
        """Ids of all diffs in the order of writing; not of those whose shard has gone."""
        there = {p.name for p in self.path.glob("shard-*.safetensors")}
        rows = self._index.execute("select id, shard from diffs order by rowid")
        return [i for i, shard in rows if shard in there]

    def metas(self, ids: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
        """What is known of each diff, by id, in the order of writing; not of those whose shard has gone.

        Args:
            ids: only of these, in their order; those that the store hasn't are left out.
        """
        if ids is None:
            there = set(self.ids())
            rows = self._index.execute("select id, meta from diffs order by rowid")
            return {i: json.loads(meta) for i, meta in rows if i in there}
        found = self._find(ids)
        return {i: json.loads(found[i][2]) for i in ids if i in found}

    def load(self, ids: Sequence[str]) -> list[WeightDiff]:
        """Read diffs by id; only their rows are read from disk.

        Raises:
            ValueError: an id isn't in the store, or its shard is broken.
        """
        return [self._load_one(i) for i in ids]

    def diffs(self, ids: Sequence[str] | None = None) -> Lazy[WeightDiff]:
        """Diffs by id, all of them if None, each read when it is asked for and not kept.

        Raises:
            ValueError: an id isn't in the store.
        """
        found = None if ids is None else self._find(ids)
        if found is not None and (unknown := [i for i in ids or () if i not in found]):
            raise self._missing(unknown[0])
        return Lazy([partial(self._load_one, i) for i in (self.ids() if ids is None else ids)])

    def _find(self, ids: Sequence[str]) -> dict[str, tuple[str, int, str]]:
        """Shard, row and record of those of the ids that the store has; takes no longer in a larger store."""
        wanted = "select value from json_each(?)"  # one parameter, however many ids
        query = f"select id, shard, row, meta from diffs where id in ({wanted})"
        found = {i: (shard, row, meta) for i, shard, row, meta in self._index.execute(query, (json.dumps(list(ids)),))}
        there = {shard: (self.path / shard).is_file() for shard, _, _ in found.values()}
        return {i: place for i, place in found.items() if there[place[0]]}

    def _load_one(self, identity: str) -> WeightDiff:
        query = "select shard, row, meta from diffs where id = ?"
        place = self._index.execute(query, (identity,)).fetchone()
        if place is None:
            raise self._missing(identity)
        shard, row, meta = place
        path = self.path / shard
        dense: dict[str, torch.Tensor] = {}
        factors: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        try:
            names = names_in(path)
            if any(name.endswith(".D") for name in names):  # a dense diff has a shard of its own
                dense = {name[:-2]: tensor.float() for name, tensor in load_file(path).items()}
            else:
                tensors = read_row(path, row)
                factors = {n[:-2]: (tensors[n], tensors[f"{n[:-2]}.B"]) for n in names if n.endswith(".A")}
        except (OSError, SafetensorError, ValueError) as error:
            raise ValueError(
                f"{path} is missing or broken ({error}). Delete it and run finetune again: that makes its diffs anew."
            ) from None
        return WeightDiff(factors, self.base, json.loads(meta), dense)

    def _missing(self, identity: str) -> ValueError:
        return ValueError(
            f"the store {self.path} has no diff {identity!r}; `weightdiff inspect {self.path}` lists them."
        )
