"""One linear layer under many low-rank diffs, each over its own stretch of tokens: the product that training rests on.

Diffs that lie next to each other go through in blocks: all their `A`s at once, a gate that leaves each token its own
diff's columns, and all their `B`s at once, added in place. A block of rank-1 diffs costs what one of them costs, and
`dx` gathers the gradients of the layer and of all diffs in one buffer. No `B A` is formed. Knows nothing of models.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

COLUMNS = {"cpu": 16, "cuda": 1024}
"""Columns that a block may have. Up to 16 a product takes a CPU the time of one column (measured, AVX-512); a GPU has
room for more, and every block less is a launch less."""

Run = tuple[int, int, int]
"""A diff's index, and the first and the last token (exclusive) of a stretch that takes it."""


@dataclass(frozen=True)
class Block:
    """A stretch of tokens, and the diffs next to each other that it goes through.

    Attributes:
        diffs: first and last diff (exclusive).
        tokens: first and last token (exclusive).
        gate: factor on each token's columns: its diff's strength, 0 for its neighbours' columns.
    """

    diffs: tuple[int, int]
    tokens: tuple[int, int]
    gate: Float[Tensor, "tokens columns"]


def blocks_of(
    runs: Sequence[Run], starts: Sequence[int], strength: Float[Tensor, " tokens"] | None, device: torch.device
) -> list[Block]:
    """Gather stretches, one after the other, into blocks of diffs that lie next to each other, as wide as pays.

    Args:
        runs: the stretches.
        starts: the first column of each diff, and at last the number of columns; a diff may have none.
        strength: of each token's diff, 1 if None.
        device: where the tokens are.
    """
    most = COLUMNS.get(device.type, COLUMNS["cuda"])
    groups: list[tuple[int, int, list[Run]]] = []
    for run in runs:
        first, past = run[0], run[0] + 1
        if groups:
            first, past = min(first, groups[-1][0]), max(past, groups[-1][1])
        if groups and starts[past] - starts[first] <= most:
            groups[-1] = first, past, [*groups[-1][2], run]
        else:
            groups.append((run[0], run[0] + 1, [run]))
    blocks = []
    for first, past, group in groups:
        start, end = group[0][1], group[-1][2]
        if starts[first] == starts[past]:
            continue
        owner = torch.tensor([n for n, *_ in group]).repeat_interleave(torch.tensor([e - s for _, s, e in group]))
        widths = torch.tensor(starts[first : past + 1]).diff()
        column = torch.arange(first, past).repeat_interleave(widths)
        gate = (owner.to(device)[:, None] == column.to(device)).float()
        if strength is not None:
            gate = gate * strength[start:end, None]
        blocks.append(Block((first, past), (start, end), gate))
    return blocks


@torch.library.custom_op("weightdiff::block_linear", mutates_args=())
def block_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, spans: Tensor, gates: Tensor
) -> tuple[Tensor, Tensor]:
    """`y = x Wᵀ + bias`, and over each span's tokens `+ (gate · x Aᵀ) B` of its columns.

    An operator of its own, so that a compiler takes it whole and doesn't make a new program for each step's spans.

    Args:
        x: `[tokens, in]`.
        weight, bias: the frozen layer's, `[out, in]` and `[out]`.
        a, b: factors of all diffs, `[columns, in]` and `[columns, out]`.
        spans: int64 `[n, 5]`: first and last column, first and last token (exclusive), 1 where the columns are trained.
        gates: factor on each span's tokens and columns, one span's after the other in one flat tensor.

    Returns:
        `y [tokens, out]`, and all spans' gated `x Aᵀ`, laid out as the gates, for the gradient.
    """
    y = F.linear(x, weight, bias)
    hidden, at = torch.empty_like(gates, dtype=x.dtype), 0
    for c0, c1, start, end, _ in spans.tolist():
        piece, at = slice(at, at + (end - start) * (c1 - c0)), at + (end - start) * (c1 - c0)
        h = hidden[piece].view(end - start, c1 - c0)
        torch.mm(x[start:end], a[c0:c1].T, out=h)
        h *= gates[piece].view_as(h)
        y[start:end].addmm_(h, b[c0:c1])
    return y, hidden


@torch.library.custom_op("weightdiff::block_linear_gradients", mutates_args=())
def block_linear_gradients(
    g: Tensor,
    x: Tensor,
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    spans: Tensor,
    gates: Tensor,
    hidden: Tensor,
    to_x: bool,
    to_factors: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for `x`, `a` and `b`; empty ones where they aren't wanted (no layer below the first needs `x`'s)."""
    dx = g @ weight if to_x else g.new_empty(0)
    da, db = (torch.zeros_like(t) if to_factors else g.new_empty(0) for t in (a, b))
    at = 0
    for c0, c1, start, end, trained in spans.tolist():
        piece, at = slice(at, at + (end - start) * (c1 - c0)), at + (end - start) * (c1 - c0)
        h = hidden[piece].view(end - start, c1 - c0)
        dh = (g[start:end] @ b[c0:c1].T).mul_(gates[piece].view_as(h))
        if to_x:
            dx[start:end].addmm_(dh, a[c0:c1])
        if to_factors and trained:
            da[c0:c1].addmm_(dh.T, x[start:end])
            db[c0:c1].addmm_(h.T, g[start:end])
    return dx, da, db


@block_linear.register_fake
def _(x, weight, bias, a, b, spans, gates):
    return x.new_empty(x.shape[0], weight.shape[0]), torch.empty_like(gates, dtype=x.dtype)


@block_linear_gradients.register_fake
def _(g, x, weight, a, b, spans, gates, hidden, to_x, to_factors):
    none = g.new_empty(0)
    return (torch.empty_like(x) if to_x else none), *(torch.empty_like(t) if to_factors else none for t in (a, b))


def _keep(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, weight, _, a, b, spans, gates = inputs
    ctx.save_for_backward(x, weight, a, b, spans, gates, output[1])


def _backward(ctx: Any, g: Tensor, _: Tensor) -> tuple:
    x, weight, a, b, spans, gates, hidden = ctx.saved_tensors
    to_x, to_factors = ctx.needs_input_grad[0], ctx.needs_input_grad[3]
    dx, da, db = block_linear_gradients(g, x, weight, a, b, spans, gates, hidden, to_x, to_factors)
    dx, da, db = dx if to_x else None, da if to_factors else None, db if to_factors else None
    return dx, None, None, da, db, None, None


block_linear.register_autograd(_backward, setup_context=_keep)
