"""A stranger's files: names, links, sizes and headers are checked here before a byte of their tensors is believed.

Knows nothing of diffs. Every reader of files goes through this one (or `pickles`, for torch's own), so
that a broken or hostile file is a `ValueError` within seconds, and never more memory than it could honestly need.
"""

import json
import os
import reprlib
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

MAX_JSON = 32 << 20
"""Bytes of a JSON file or header: 200,000 tensors have one of 25 MB."""
MAX_TENSORS = 200_000
MAX_NAME = 1000
"""Characters of a tensor's name."""
MAX_BYTES = 32 << 30
"""Bytes of tensors that one file of factors may bring into memory, where half of the free memory isn't less."""

_MAX_PARTS = 5 * MAX_TENSORS
"""Lists and objects in one JSON file: empty ones take two bytes there, and thirty times as many in memory."""
_SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")


def inside(folder: Path, name: str) -> Path:
    """The file `name` of a folder, which may not lie elsewhere by its name or by a link.

    A hub cache's own links, from a snapshot to the blobs beside it, are followed.

    Raises:
        ValueError: the name is absolute or climbs out, or a link in the folder leads out of it.
    """
    path, root = folder / name, folder.resolve()
    if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
        raise ValueError(f"{folder}: it names the file {name!r}, which would lie outside of it; it isn't read.")
    try:
        found = path.resolve()
    except (OSError, RuntimeError) as error:  # a name too long; links that go round in circles
        raise ValueError(f"{path} can't be read: {error}.") from None
    # A hub cache: models--org--name/snapshots/COMMIT/any/file -> models--org--name/blobs/HASH
    blobs = [place.parents[1] / "blobs" for place in (root, *root.parents) if place.parent.name == "snapshots"]
    if found != root and not any(place in found.parents for place in (root, *blobs)):
        raise ValueError(f"{path} is a link out of its folder, to {str(found)!r}; copy the file itself there.")
    return path


def open_file(path: Path) -> BinaryIO:
    """A file opened for reading, which must be a regular one: a named pipe would be waited for without end.

    Raises:
        ValueError: there is none, or it may not be read.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError(f"{path} is no regular file.")
        return open(path, "rb", buffering=0)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file.") from None
    except OSError as error:
        raise ValueError(f"{path} is not readable: {error.strerror}.") from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of at most `MAX_JSON` bytes.

    Raises:
        ValueError: no such file, too large, not JSON, no object.
    """
    with open_file(path) as file:
        raw = file.read(MAX_JSON + 1)
    if len(raw) > MAX_JSON:
        raise ValueError(f"{path} has more than {MAX_JSON >> 20} MB; expected a small JSON file.")
    return _parsed(raw, str(path))


def _parsed(raw: bytes, where: str) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            (twice, _), *_ = Counter(k for k, _ in pairs).most_common(1)
            raise ValueError(f"{twice!r} is in it twice")
        return found

    if raw.count(b"[") + raw.count(b"{") > _MAX_PARTS:
        raise ValueError(f"{where} is not readable JSON: it has more than {_MAX_PARTS} lists and objects.")
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not readable JSON: {error}.") from None
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected a JSON object, got {type(value).__name__}.")
    return value


def memory_limit() -> int:
    """Bytes of tensors that a file of factors may bring into memory: half of what is free, at most `MAX_BYTES`."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        for line in Path("/proc/meminfo").read_text().splitlines():  # caches give way, and count as free there
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) << 10
    except (OSError, ValueError):
        return MAX_BYTES
    return min(MAX_BYTES, free // 2)


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of its tensors, by name, in the file's order.

    Attributes:
        shapes: of each tensor.
        dtypes: the same, as safetensors names them (`F32`, `BF16`, …).
        starts: the byte at which each begins, counted from the header's end.
        metadata: the strings that the file's writer put beside the tensors.
    """

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    starts: dict[str, int]
    metadata: dict[str, str]


def header_length(first: bytes, size: int) -> int:
    """Bytes of the header of a safetensors file of `size` bytes that begins with these eight."""
    length = int.from_bytes(first, "little") if len(first) == 8 else -1
    if not 2 <= length <= min(MAX_JSON, size - 8):
        raise ValueError(f"its header claims {length} bytes, of {size} in all")
    return length


def parse_header(raw: bytes, room: int) -> Header:
    """A header, where what it says of its tensors fills the `room` bytes after it without a gap or an overlap.

    Raises:
        ValueError: what is wrong with it.
    """
    entries = _parsed(raw, "its header")
    metadata = {k: v for k, v in _mapping(entries.pop("__metadata__", {})).items() if isinstance(v, str)}
    if len(entries) > MAX_TENSORS:
        raise ValueError(f"it holds {len(entries)} tensors, and more than {MAX_TENSORS} aren't read")
    header, spans = Header({}, {}, {}, metadata), []
    for name, entry in entries.items():
        if len(name) > MAX_NAME:
            raise ValueError(f"a tensor's name has {len(name)} characters, {name[:50]!r}…; expected at most {MAX_NAME}")
        shape, dtype, span = (_mapping(entry).get(k) for k in ("shape", "dtype", "data_offsets"))
        if not (are_sizes(shape) and are_sizes(span) and len(span) == 2 and isinstance(dtype, str) and dtype in _SIZES):
            raise ValueError(f"what its header says of {name!r} can't be understood: {reprlib.repr(entry)}")
        if span[1] - span[0] != prod(shape) * _SIZES[dtype]:
            raise ValueError(f"{name!r} is {dtype} {shape}, and its header gives it {span[1] - span[0]} bytes")
        spans.append((*span, name))
        header.shapes[name], header.dtypes[name], header.starts[name] = tuple(shape), dtype, span[0]
    at = 0
    for start, end, name in sorted(spans):
        if start != at:
            raise ValueError(f"{name!r} begins at byte {start} of its tensors, expected {at}")
        at = end
    if at != room:
        raise ValueError(f"its header speaks of {at} bytes of tensors, and there are {room}")
    return header


class TensorFile:
    """A safetensors file whose header was checked; tensors are read when they are asked for.

    Args:
        path: the file.

    Attributes:
        shapes, dtypes, metadata: see `Header`.

    Raises:
        ValueError: no such file, cut off, or a header that lies about it.
    """

    def __init__(self, path: Path):
        self.path = path
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            try:
                length = header_length(file.read(8), size)
                header = parse_header(file.read(length), size - 8 - length)
            except (OSError, ValueError) as error:
                raise self._broken(str(error)) from None
        self.shapes, self.dtypes, self.metadata = header.shapes, header.dtypes, header.metadata

    def nbytes(self, name: str) -> int:
        """Bytes that the tensor takes once read, as float32."""
        return 4 * prod(self.shapes[name])

    def read(self, name: str) -> Float[Tensor, "..."]:
        """One tensor, as float32.

        Raises:
            ValueError: it isn't of floating point, holds NaN or infinite values, or takes more than `memory_limit`.
        """
        if self.dtypes[name] not in _FLOATS:
            raise ValueError(f"{self.path}: {name!r} is of type {self.dtypes[name]}; expected floating point.")
        check_memory(self.path, self.nbytes(name))
        try:
            tensor = self._file.get_tensor(name).float()
        except (OSError, SafetensorError, RuntimeError) as error:
            raise self._broken(str(error)) from None
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{self.path}: {name!r} holds NaN or infinite values; the finetune diverged.")
        return tensor

    def read_all(self) -> Iterator[tuple[str, Float[Tensor, "..."]]]:
        """Every tensor with its name.

        Raises:
            ValueError: see `read`; or together they are more than `memory_limit`.
        """
        check_memory(self.path, sum(map(self.nbytes, self.shapes)))
        for name in self.shapes:
            yield name, self.read(name)

    @cached_property
    def _file(self) -> Any:
        return safe_open(self.path, "pt")

    def _broken(self, why: str) -> ValueError:
        return ValueError(f"{self.path} is no readable safetensors file (truncated?): {why.rstrip('.')}.")


def check_memory(path: Path, needed: int) -> None:
    """Raise a ValueError where a file's tensors would take more memory than one may."""
    if needed > (limit := memory_limit()):
        raise ValueError(
            f"{path}: its tensors take {needed / 2**30:.1f} GiB in memory, and {limit / 2**30:.1f} GiB is what one "
            "file may take here. Is it a LoRA? A full checkpoint is a folder with a config.json."
        )


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def are_sizes(value: Any) -> TypeGuard[list[int] | tuple[int, ...]]:
    """Is it a list or tuple of sizes that a tensor in a file can have?"""
    return isinstance(value, list | tuple) and len(value) <= 8 and all(type(n) is int and 0 <= n < 2**48 for n in value)
