"""Many diffs on disk: safetensors shards of stacked factors, and an SQLite index of what they are.

A shard is written whole under another name and then moved into place, and the index learns of it last; so a
shard that was being written when the process died is simply not there. A store may come from a stranger: what only
reads it never writes to it, and believes nothing in it before it was checked.
"""

import hashlib
import json
import re
import sqlite3
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from weightdiff.atomic import replacing
from weightdiff.diff import WeightDiff, stack
from weightdiff.files import MAX_JSON, TensorFile, inside, memory_limit
from weightdiff.lazy import Lazy
from weightdiff.shard import is_stacked, read_row

_SCHEMA = """
create table if not exists diffs (id text primary key, shard text not null, row integer not null, meta text not null);
create table if not exists facts (key text primary key, value text not null);
"""
_SHARD = re.compile(r"shard-[\w.-]{1,80}\.safetensors", re.ASCII)
_MAX_META = 1 << 20
"""Characters of what is known of one diff."""


def is_store(path: str | Path) -> bool:
    """Is this folder a store of diffs?"""
    return (Path(path) / "index.sqlite").is_file()


class Store:
    """Diffs of one base model, by id.

    Args:
        path: folder; made if it isn't there.
        base: fingerprint of the base model, to write to it; None to take it from the store, and only to read.

    Raises:
        ValueError: the store belongs to another base model, the folder can't be written or read, or the index is
            damaged or isn't one that this class makes.
    """

    def __init__(self, path: Path, base: str | None = None):
        self.path = Path(path)
        if base is None and not is_store(path):
            raise ValueError(f"{path} is no store of diffs: index.sqlite is missing. Make one with finetune.")
        try:
            self._index = _opened(self.path) if base is None else _made(self.path)
            _check_schema(self.path, self._index)
            if base is None and (found := self._index.execute("pragma quick_check(1)").fetchone()) != ("ok",):
                raise ValueError(f"the index of {path} is damaged: {found[0]}.")
            if base is not None:
                with self._index:
                    self._index.execute("insert or ignore into facts values ('base', ?)", (base,))
            row = self._index.execute("select value from facts where key = 'base'").fetchone()
        except (OSError, sqlite3.Error) as error:
            hint = "Is it a folder you may write to?" if base else "Was a run stopped while it wrote? Go on with it."
            raise ValueError(f"cannot open the store {path}: {error}. {hint}") from None
        self.base: str = row[0] if row else ""
        if not isinstance(self.base, str):
            raise ValueError(f"the index of {path} gives {type(self.base).__name__} as base model; expected a text.")
        if base is not None and self.base != base:
            raise ValueError(
                f"the store {path} holds diffs of the base model {self.base}, and {base} was given. "
                "Use that base model, or another folder."
            )

    def add(self, ids: Sequence[str], diffs: Sequence[WeightDiff], dtype: torch.dtype = torch.bfloat16) -> None:
        """Write diffs as one shard, one with dense parts as a shard of its own; ids that exist are replaced.

        Args:
            ids: one id per diff.
            diffs: what to write.
            dtype: precision on disk.

        Raises:
            ValueError: a diff doesn't carry the store's fingerprint, or there is no space or permission.
        """
        if others := [d.base for d in diffs if d.base != self.base]:
            raise ValueError(
                f"the store {self.path} holds diffs of the base model {self.base}, and one that is to be added "
                f"{f'is of {others[0]}' if others[0] else 'carries no fingerprint'}."
            )
        if len(diffs) > 1 and any(d.dense or not d.factors for d in diffs):
            for identity, diff in zip(ids, diffs, strict=True):
                self.add([identity], [diff], dtype)
            return
        name = "shard-" + hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16] + ".safetensors"
        factors = [WeightDiff(d.factors) for d in diffs]
        stacked = stack(factors, {k: (b.shape[0], a.shape[1]) for d in factors for k, (a, b) in d.factors.items()})
        tensors = {f"{k}.A": v for k, v in stacked.a.items()} | {f"{k}.B": v for k, v in stacked.b.items()}
        tensors |= {f"{k}.D": v for k, v in diffs[0].dense.items()}
        try:
            with replacing(self.path / name) as temporary:
                save_file(
                    {k: v.detach().to("cpu", dtype, copy=True).contiguous() for k, v in tensors.items()}, temporary
                )
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
        rows = self._rows("select id, shard, row, '' from diffs order by rowid")
        return [i for i, (shard, _, _) in rows if shard in there]

    def metas(self, ids: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
        """What is known of each diff, by id, in the order of writing; not of those whose shard has gone.

        Args:
            ids: only of these, in their order; those that the store hasn't are left out.
        """
        if ids is None:
            there = set(self.ids())
            rows = self._rows("select id, shard, row, meta from diffs order by rowid")
            return {i: self._meta(i, meta) for i, (_, _, meta) in rows if i in there}
        found = self._find(ids)
        return {i: self._meta(i, found[i][2]) for i in ids if i in found}

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
        found = dict(self._rows(query, json.dumps(list(ids))))
        there = {shard: (self.path / shard).is_file() for shard, _, _ in found.values()}
        return {i: place for i, place in found.items() if there[place[0]]}

    def _rows(self, query: str, *values: str) -> list[tuple[str, tuple[str, int, str]]]:
        """The id, and the shard, row and record, of what the query finds; checked, since SQLite's types are loose."""
        try:
            rows = self._index.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise ValueError(f"the index of {self.path} can't be read: {error}.") from None
        for identity, shard, row, meta in rows:
            if [type(value) for value in (identity, shard, row, meta)] != [str, str, int, str] or row < 0:
                raise ValueError(f"the index of {self.path} is broken: of {identity!r} it says {shard!r}, row {row!r}.")
            if not _SHARD.fullmatch(shard):
                raise ValueError(f"the index of {self.path} names {shard!r}, which is no shard of a store.")
        return [(identity, (shard, row, meta)) for identity, shard, row, meta in rows]

    def _meta(self, identity: str, text: str) -> dict[str, Any]:
        try:
            meta = json.loads(text) if len(text) <= _MAX_META else None
        except (ValueError, RecursionError):
            meta = None
        if not isinstance(meta, dict):
            raise ValueError(
                f"the index of {self.path} is broken: what it says of {identity!r} is no JSON object of at most "
                f"{_MAX_META >> 20} MB."
            )
        return meta

    def _load_one(self, identity: str) -> WeightDiff:
        found = self._rows("select id, shard, row, meta from diffs where id = ?", identity)
        if not found:
            raise self._missing(identity)
        ((_, (shard, row, meta)),) = found
        path = inside(self.path, shard)
        try:
            if is_stacked(path):
                tensors, dense = read_row(path, row), {}
            else:
                whole = dict(TensorFile(path).read_all())
                dense = {name[:-2]: tensor for name, tensor in whole.items() if name.endswith(".D")}
                tensors = {name: tensor[0] for name, tensor in whole.items() if not name.endswith(".D")}
        except (OSError, ValueError) as error:
            why = str(error).rstrip(".")
            raise ValueError(
                f"{path} is missing or broken ({why}). Delete it and run finetune again: that makes its diffs anew."
            ) from None
        factors = {n[:-2]: (tensors[n], tensors[f"{n[:-2]}.B"]) for n in tensors if n.endswith(".A")}
        return WeightDiff(factors, self.base, self._meta(identity, meta), dense)

    def _missing(self, identity: str) -> ValueError:
        return ValueError(
            f"the store {self.path} has no diff {identity!r}; `weightdiff inspect {self.path}` lists them."
        )


def _made(folder: Path) -> sqlite3.Connection:
    """The index of a store of one's own, to write to."""
    folder.mkdir(parents=True, exist_ok=True)
    index = sqlite3.connect(folder / "index.sqlite", timeout=60)
    index.executescript(_SCHEMA)
    return index


def _opened(folder: Path) -> sqlite3.Connection:
    """The index of a store that may be a stranger's; it can't be changed through this connection."""
    file = inside(folder, "index.sqlite").resolve()
    if file.stat().st_size > memory_limit() // 8:  # its records take some eight times as much once they are parsed
        raise ValueError(f"{file} has {file.stat().st_size >> 20} MB; expected an index that fits into memory.")
    # Bytes 18 and 19 are 2 where a write-ahead log is kept, and SQLite would write files beside it. It is asked itself:
    # whoever else opens and closes the file makes this process lose its locks on it.
    probe = sqlite3.connect(f"{file.as_uri()}?immutable=1", uri=True)
    if probe.serialize()[18:20] != b"\1\1":
        raise ValueError(f"{file} keeps a write-ahead log, or is no index; it isn't one that a store writes.")
    probe.close()
    index = sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=60)
    index.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_JSON)
    index.execute("pragma trusted_schema = off")
    index.execute("pragma cell_size_check = on")
    return index


def _check_schema(folder: Path, index: sqlite3.Connection) -> None:
    """Raise a ValueError where an index has other tables than ours, or views and triggers, which could run SQL."""
    query = "select type, name, tbl_name, sql from sqlite_master order by name"
    ours = sqlite3.connect(":memory:")
    ours.executescript(_SCHEMA)
    if index.execute(query).fetchall() != ours.execute(query).fetchall():
        raise ValueError(f"the index of {folder} has other tables than a store's, or views or triggers; it isn't read.")
