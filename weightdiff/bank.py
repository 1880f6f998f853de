"""The bank: many low-rank diffs on one frozen base model at once, a different one for every row of a batch.

For row `b` with diff `n(b)`: `y = x Wᵀ + s·(x A_nᵀ) B_nᵀ`, for each stack laid over the model; the product
`B A` is never formed. Rows are batch rows, or, where all conversations lie end to end, single tokens. It doesn't
know what the diffs mean: finetuning, adapter training and asking share it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from weightdiff.diff import Factors


@dataclass
class Layer:
    """One stack of diffs, and which row of the batch takes which.

    Attributes:
        factors: the stacked diffs.
        rows: index of the diff of each row; None where every row takes diff 0 (the DIT adapter).
        strength: factor on the change, per row or one number for all.
    """

    factors: Factors
    rows: Int[Tensor, " rows"] | None = None
    strength: Float[Tensor, " rows"] | float = 1.0

    def select(self, keep: Int[Tensor, " kept"]) -> "Layer":
        """The same layer for the rows `keep` only."""
        rows = self.rows if self.rows is None else self.rows[keep]
        strength = self.strength[keep] if isinstance(self.strength, Tensor) else self.strength
        return Layer(self.factors, rows, strength)


@contextmanager
def lay_over(targets: Mapping[str, nn.Linear], layers: Sequence[Layer]) -> Iterator[None]:
    """Lay stacks of diffs over a model's linear layers; leaving the block restores it bit for bit.

    Args:
        targets: module name to linear layer, as `Base.targets` gives them.
        layers: the stacks; a row's changes add up over them.
    """
    changed = []
    plans = [_runs(layer) for layer in layers]
    try:
        for name, module in targets.items():
            adds = [_adder(layer, plan, name) for layer, plan in zip(layers, plans, strict=True)]
            adds = [add for add in adds if add is not None]
            if adds:
                module.forward = _changed_forward(module, adds)  # type: ignore[method-assign]
                changed.append(module)
        yield
    finally:
        for module in changed:
            del module.forward  # the instance attribute; the class's own method shows again


Add = Callable[[Tensor, Tensor], Tensor]
_LONG = 8
"""Rows of one diff on end from which a product of its own for each diff costs less than one batched product."""
Run = tuple[int, int, int]
"""A diff's index, and the first and the last row (exclusive) of a stretch of rows that take it."""


def _changed_forward(module: nn.Linear, adds: Sequence[Add]) -> Callable[[Tensor], Tensor]:
    def forward(x: Float[Tensor, "batch time in"]) -> Float[Tensor, "batch time out"]:
        y = F.linear(x, module.weight, module.bias)
        for add in adds:
            y = add(x, y)
        return y

    return forward


def _runs(layer: Layer) -> list[Run] | None:
    """Stretches of rows with one diff, where they are so long that going through them one by one pays."""
    if layer.rows is None or not len(layer.rows):
        return None
    values, counts = torch.unique_consecutive(layer.rows.cpu(), return_counts=True)
    if len(layer.rows) < _LONG * len(values):
        return None
    ends = counts.cumsum(0).tolist()
    return list(zip(values.tolist(), [0, *ends[:-1]], ends, strict=True))


def _adder(layer: Layer, runs: list[Run] | None, name: str) -> Add | None:
    if name not in layer.factors.a:
        return None
    a, b, rows, strength = layer.factors.a[name], layer.factors.b[name], layer.rows, layer.strength
    factor = strength[:, None] if isinstance(strength, Tensor) else strength

    def shared(x: Tensor, y: Tensor) -> Tensor:
        h = F.linear(x, a[0].to(x.dtype))
        return y + F.linear(h if strength == 1.0 else h * strength, b[0].to(x.dtype))

    def stretches(x: Tensor, y: Tensor) -> Tensor:
        width = x.shape[0] * x.shape[1] // len(rows)  # type: ignore[arg-type]  # tokens per row
        scaled = factor.to(x).repeat_interleave(width, 0) if isinstance(factor, Tensor) else factor
        spans = [(n, start * width, end * width) for n, start, end in runs or ()]
        return _AddRuns.apply(y, x, a.to(x.dtype), b.to(x.dtype), spans, scaled)

    def single(x: Tensor, y: Tensor) -> Tensor:
        n = len(rows)  # type: ignore[arg-type]
        h = torch.bmm(x.reshape(n, -1, x.shape[-1]), a[rows].to(x.dtype).mT)
        h = h * (factor[:, None].to(h) if isinstance(factor, Tensor) else factor)
        return torch.baddbmm(y.reshape(n, -1, y.shape[-1]), h, b[rows].to(x.dtype).mT).view_as(y)

    if rows is None:
        return shared
    return stretches if runs is not None else single


class _AddRuns(torch.autograd.Function):
    """Adds each stretch of tokens its diff's change, in place: no padding, no gathered factors, no copy of `y`."""

    @staticmethod
    def forward(
        ctx: Any,
        y: Float[Tensor, "batch time out"],
        x: Float[Tensor, "batch time in"],
        a: Float[Tensor, "n rank in"],
        b: Float[Tensor, "n out rank"],
        runs: list[Run],
        factor: Float[Tensor, "tokens 1"] | float,
    ) -> Float[Tensor, "batch time out"]:
        flat, out = x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        h = flat.new_empty(len(flat), a.shape[1])
        for n, start, end in runs:
            torch.mm(flat[start:end], a[n].T, out=h[start:end])
        h *= factor
        for n, start, end in runs:
            out[start:end].addmm_(h[start:end], b[n].T)
        ctx.runs, ctx.factor = runs, factor
        ctx.save_for_backward(x, a, b, h)
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b, h = ctx.saved_tensors
        flat, g = x.reshape(-1, x.shape[-1]), grads[0].reshape(-1, grads[0].shape[-1])
        _, to_x, to_a, to_b, *_ = ctx.needs_input_grad
        dh = torch.empty_like(h)
        for n, start, end in ctx.runs:
            torch.mm(g[start:end], b[n], out=dh[start:end])
        dh *= ctx.factor
        dx = torch.empty_like(flat) if to_x else None
        da, db = torch.zeros_like(a) if to_a else None, torch.zeros_like(b) if to_b else None
        for n, start, end in ctx.runs:
            if dx is not None:
                torch.mm(dh[start:end], a[n], out=dx[start:end])
            if da is not None:
                da[n].addmm_(dh[start:end].T, flat[start:end])
            if db is not None:
                db[n].addmm_(g[start:end].T, h[start:end])
        return grads[0], dx.view_as(x) if dx is not None else None, da, db, None, None
