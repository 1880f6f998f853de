"""One row of the stacked tensors of a safetensors file, and nothing else of that file.

A shard holds `[n, …]` per tensor, and a diff is one row of each: 420 pieces of 2 KB. safetensors' own slices map the
file, parse its header and make a tensor for every piece, 5 ms a diff, and the mapped pages count as this process's
memory. Here the pieces are read into one buffer and cast at once: 1 ms, and nothing stays open.
"""

import json
import os
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path

import torch
from torch import Tensor

_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


def read_row(path: Path, row: int) -> dict[str, Tensor]:
    """The `row`-th row of every tensor of a file whose tensors all have one precision, as float32.

    Args:
        path: a safetensors file.
        row: which row of the first dimension.

    Raises:
        OSError: no such file, or it can't be read.
        ValueError: the file is cut off, is no such file, or has no such row.
    """
    file = os.open(path, os.O_RDONLY)
    try:
        layout, start = _layout_of(file)
        if not all(row < count for _, count, _ in layout.pieces):
            raise ValueError(f"it has no row {row}")
        buffer = bytearray(sum(width for _, _, width in layout.pieces))
        view, at = memoryview(buffer), 0
        for offset, _, width in layout.pieces:
            os.preadv(file, [view[at : at + width]], start + offset + row * width)
            at += width
    finally:
        os.close(file)
    flat = torch.frombuffer(buffer, dtype=layout.dtype).float() if buffer else torch.empty(0)
    parts = flat.split([prod(shape) for shape in layout.shapes])
    return {name: part.view(shape) for name, part, shape in zip(layout.names, parts, layout.shapes, strict=True)}


def names_in(path: Path) -> list[str]:
    """Names of the tensors in a safetensors file; raises what `read_row` raises."""
    file = os.open(path, os.O_RDONLY)
    try:
        return _layout_of(file)[0].names
    finally:
        os.close(file)


@dataclass(frozen=True)
class _Layout:
    """What a header says, tensors in their order on disk.

    Attributes:
        names, shapes: of each tensor; the shape is that of one row.
        pieces: where each begins after the header, how many rows it has, and the bytes of one.
        dtype: the precision of all of them.
        end: how many bytes follow the header.
    """

    names: list[str]
    shapes: list[list[int]]
    pieces: list[tuple[int, int, int]]
    dtype: torch.dtype
    end: int


def _layout_of(file: int) -> tuple[_Layout, int]:
    """The layout of an open file, and where its header ends."""
    size, length = os.fstat(file).st_size, int.from_bytes(os.pread(file, 8, 0), "little")
    if not 0 < length <= size - 8:
        raise ValueError("it is cut off in its header")
    layout = _parsed(os.pread(file, length, 8))
    if size < 8 + length + layout.end:
        raise ValueError(f"it has {size} bytes of {8 + length + layout.end}")
    return layout, 8 + length


@lru_cache(maxsize=8)  # the shards of one way of finetuning have one header, and parsing it takes as long as a row
def _parsed(header: bytes) -> _Layout:
    try:
        entries = [(name, entry) for name, entry in json.loads(header).items() if name != "__metadata__"]
        entries.sort(key=lambda item: item[1]["data_offsets"][0])
        (dtype,) = {_DTYPES[entry["dtype"]] for _, entry in entries} or {torch.float32}
        spans, shapes = [e["data_offsets"] for _, e in entries], [e["shape"] for _, e in entries]
        pieces = [
            (at, shape[0], prod(shape[1:]) * dtype.itemsize) for (at, _), shape in zip(spans, shapes, strict=True)
        ]
        end = max((end for _, end in spans), default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"its header can't be understood: {error!r}") from None
    return _Layout([name for name, _ in entries], [shape[1:] for shape in shapes], pieces, dtype, end)
