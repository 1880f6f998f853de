"""JSON lines on disk that survive being stopped: append a line at a time, ignore a half-written last one."""

import json
import lzma
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a `.jsonl` or `.jsonl.xz` file; a half-written last line is dropped.

    Raises:
        ValueError: there is no such file, or a line before the last is broken.
    """
    if not path.exists():
        raise ValueError(f"{path}: no such file; expected JSON lines (.jsonl or .jsonl.xz).")
    raw = path.read_bytes()
    lines = (lzma.decompress(raw) if path.suffix == ".xz" else raw).split(b"\n")
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError:
                if number < len(lines):
                    raise ValueError(f"{path}, line {number}: not JSON. Repair or remove that line.") from None


def append_jsonl(path: Path, record: dict[str, Any]) -> None:
    """Append one object, ending a half-written line first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.seek(0)
                whole = file.read()
                file.truncate(whole.rfind(b"\n") + 1)
        file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
