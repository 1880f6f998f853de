"""Sound files to be damaged, and files written as no honest program would, for the tests of hostile ones."""

import json
import os
import sqlite3
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

from weightdiff.diff import WeightDiff
from weightdiff.formats.peft import save_peft
from weightdiff.store import Store

MODULE = "model.layers.0.mlp.up_proj"
KEY = f"base_model.model.{MODULE}.lora_A.weight"


def sound_folder(tmp_path: Path) -> Path:
    """A sound PEFT folder of one module, to be damaged."""
    pair = torch.randn(2, 6), torch.randn(4, 2)
    save_peft(WeightDiff({MODULE: pair}), tmp_path / "peft", base_name="tiny")
    return tmp_path / "peft"


def sound_store(tmp_path: Path) -> Path:
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


def archive(path: Path, program: bytes, parts: dict[str, bytes] | None = None, kind: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", kind) as made:
        for name, raw in {"data.pkl": program, **(parts or {})}.items():
            made.writestr(f"archive/{name}", raw)


def change(store: Path, sql: str, *values: Any) -> None:
    index = sqlite3.connect(store / "index.sqlite", isolation_level=None)
    index.execute(sql, values)
    index.close()
