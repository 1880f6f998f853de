"""JSON lines on disk that survive being stopped: append a line at a time, ignore a half-written last one."""

import fcntl
import json
import lzma
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from weightdiff.atomic import replacing


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a `.jsonl` or `.jsonl.xz` file; a half-written last line is dropped.

    Raises:
        ValueError: there is no such file, or a line before the last is broken.
    """
    if not path.exists():
        raise ValueError(f"{path}: no such file; expected JSON lines (.jsonl or .jsonl.xz).")
    try:
        raw = path.read_bytes()
        lines = (lzma.decompress(raw) if path.suffix == ".xz" else raw).split(b"\n")
    except (OSError, lzma.LZMAError) as error:
        raise ValueError(f"cannot read {path}: {error}. Expected JSON lines (.jsonl or .jsonl.xz).") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError:
                if number < len(lines):
                    raise ValueError(f"{path}, line {number}: not JSON. Repair or remove that line.") from None


def write_jsonl(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write objects as the whole of a `.jsonl` or `.jsonl.xz` file, which appears at once or not at all.

    Raises:
        ValueError: no space, or no permission to write.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
        with replacing(path) as temporary:
            temporary.write_bytes(lzma.compress(text, preset=9) if path.suffix == ".xz" else text)
    except OSError as error:
        raise ValueError(f"cannot write to {path}: {error.strerror}. Is there space and permission?") from None


def append_jsonl(path: Path, record: dict[str, Any]) -> None:
    """Append one object, cutting off a half-written line first; several processes may append to one file.

    Raises:
        ValueError: no space, or no permission to write.
    """
    line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.seek(0)
                    whole = file.read()
                    start = whole.rfind(b"\n") + 1
                    if _is_json(whole[start:]):  # whole but for its end, as some editors leave it
                        line = b"\n" + line
                    else:
                        file.truncate(start)
            file.write(line)
            file.flush()  # within the lock
    except OSError as error:
        raise ValueError(f"cannot write to {path}: {error.strerror}. Is there space and permission?") from None


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
