"""One row of the stacked tensors of a safetensors file, and nothing else of that file.

A shard holds `[n, …]` per tensor, and a diff is one row of each: 420 pieces of 2 KB. safetensors' own slices map the
file, parse its header and make a tensor for every piece, 5 ms a diff, and the mapped pages count as this process's
memory. Here the pieces are read into one buffer and cast at once: 1 ms, and nothing stays open.
"""

import os
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite, prod
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from weightdiff.files import Header, check_memory, header_length, open_file, parse_header

_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


def read_row(path: Path, row: int) -> dict[str, Float[Tensor, "..."]]:
    """The `row`-th row of every tensor of a stacked shard, as float32.

    Args:
        path: the shard.
        row: which row of the first dimension, from 0.

    Raises:
        ValueError: the file is missing, cut off or no such shard, has no such row, or that holds NaN.
    """
    with open_file(path) as file:
        layout, start = _layout_of(file.fileno())
        if not layout.stacked or row >= layout.rows:
            raise ValueError(f"it has no row {row}")
        size = sum(width for _, width in layout.pieces)
        check_memory(path, size * 4 // layout.dtype.itemsize)
        buffer = bytearray(size)
        view, at = memoryview(buffer), 0
        for offset, width in layout.pieces:
            os.preadv(file.fileno(), [view[at : at + width]], start + offset + row * width)
            at += width
    flat = torch.frombuffer(buffer, dtype=layout.dtype).float() if buffer else torch.empty(0)
    # The sum of squares takes a tenth of the time, and is infinite for some that are finite.
    if not (isfinite(flat.dot(flat)) or torch.isfinite(flat).all()):
        raise ValueError(f"its row {row} holds NaN or infinite values; the finetune diverged")
    parts = flat.split([prod(shape) for shape in layout.shapes])
    return {name: part.view(shape) for name, part, shape in zip(layout.names, parts, layout.shapes, strict=True)}


def is_stacked(path: Path) -> bool:
    """Are the rows of this shard diffs of their own? Else it holds one diff with dense parts, for `TensorFile` to read.

    Raises:
        ValueError: see `read_row`; here for the header alone.
    """
    with open_file(path) as file:
        return _layout_of(file.fileno())[0].stacked


@dataclass(frozen=True)
class _Layout:
    """What a header says, tensors in their order on disk.

    Attributes:
        names, shapes: of each tensor; the shape is that of one row.
        pieces: where each begins after the header, and the bytes of one row.
        rows: how many there are.
        dtype: the precision of all of them.
        stacked: whether its rows are diffs of their own.
    """

    names: list[str]
    shapes: list[tuple[int, ...]]
    pieces: list[tuple[int, int]]
    rows: int
    dtype: torch.dtype
    stacked: bool


def _layout_of(file: int) -> tuple[_Layout, int]:
    """The layout of an open file, and where its header ends."""
    size = os.fstat(file).st_size
    length = header_length(os.pread(file, 8, 0), size)
    return _parsed(os.pread(file, length, 8), size - 8 - length), 8 + length


@lru_cache(maxsize=8)  # the shards of one way of finetuning have one header, and parsing it takes as long as a row
def _parsed(raw: bytes, room: int) -> _Layout:
    header = parse_header(raw, room)
    rows = _check_pairs(header)
    if any(name.endswith(".D") for name in header.shapes):
        if rows not in (None, 1):
            raise ValueError(f"it has dense parts and {rows} rows; expected one row")
        return _Layout([], [], [], 0, torch.float32, stacked=False)
    names = sorted(header.shapes, key=header.starts.__getitem__)
    types = set(header.dtypes.values())
    if len(types) > 1 or not types <= _DTYPES.keys():
        raise ValueError(f"its tensors are of {sorted(types)}; expected all of one, {', '.join(_DTYPES)}")
    dtype = _DTYPES[types.pop()] if types else torch.float32
    shapes = [header.shapes[name][1:] for name in names]
    pieces = [(header.starts[n], prod(shape) * dtype.itemsize) for n, shape in zip(names, shapes, strict=True)]
    return _Layout(names, shapes, pieces, 1 if rows is None else rows, dtype, stacked=True)


def _check_pairs(header: Header) -> int | None:
    """How many rows the factors have; a ValueError where `X.A [n, rank, in]` and `X.B [n, out, rank]` don't match."""
    rows = set()
    for name, a in header.shapes.items():
        if name.endswith(".A"):
            b = header.shapes.get(f"{name[:-2]}.B", ())
            if len(a) != 3 or len(b) != 3 or a[0] != b[0] or a[1] != b[2] or not prod(a) * prod(b):
                raise ValueError(f"{name[:-2]!r} has A {list(a)} and B {list(b)}; expected rows of factors of one rank")
            rows.add(a[0])
        elif not name.endswith(".D") and not (name.endswith(".B") and f"{name[:-2]}.A" in header.shapes):
            raise ValueError(f"{name!r} is no part of a diff; expected names that end in .A and .B, or .D")
    if len(rows) > 1:
        raise ValueError(f"its tensors have {sorted(rows)} rows; expected one number")
    return rows.pop() if rows else None
