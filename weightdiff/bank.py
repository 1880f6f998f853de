"""The bank: many low-rank diffs on one frozen base model at once, a different one for every row of a batch.

For row `b` with diff `n(b)`: `y = x Wᵀ + s·(x A_nᵀ) B_nᵀ`, for each stack laid over the model; the product
`B A` is never formed. It doesn't know what the diffs mean: finetuning, adapter training and asking share it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

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
        rows: index of the diff of each batch row; None where every row takes diff 0 (the DIT adapter).
        strength: factor on the change, per batch row `[batch]` or one number for all.
    """

    factors: Factors
    rows: Int[Tensor, " batch"] | None = None
    strength: Float[Tensor, " batch"] | float = 1.0

    def select(self, keep: Int[Tensor, " kept"]) -> "Layer":
        """The same layer for the batch rows `keep` only."""
        rows = self.rows if self.rows is None else self.rows[keep]
        strength = self.strength[keep] if isinstance(self.strength, Tensor) else self.strength
        return Layer(self.factors, rows, strength)


@contextmanager
def lay_over(targets: Mapping[str, nn.Linear], layers: Sequence[Layer]) -> Iterator[None]:
    """Lay stacks of diffs over a model's linear layers; leaving the block restores it bit for bit.

    Args:
        targets: module name to linear layer, as `Base.targets` gives them.
        layers: the stacks; a batch row's changes add up over them.
    """
    changed = []
    plans = [_row_plan(layer) for layer in layers]
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


def row_diffs(n: int, per_diff: int) -> Int[Tensor, " batch"]:
    """Rows for `n` diffs with `per_diff` consecutive batch rows each."""
    return torch.arange(n).repeat_interleave(per_diff)


Add = Callable[[Tensor, Tensor], Tensor]


def _changed_forward(module: nn.Linear, adds: Sequence[Add]) -> Callable[[Tensor], Tensor]:
    def forward(x: Float[Tensor, "batch time in"]) -> Float[Tensor, "batch time out"]:
        y = F.linear(x, module.weight, module.bias)
        for add in adds:
            y = add(x, y)
        return y

    return forward


def _row_plan(layer: Layer) -> int | None:
    """Rows per diff where diffs lie in equal consecutive blocks, so that no factor need be gathered."""
    rows, n = layer.rows, len(layer.factors)
    if rows is None or n == 0 or len(rows) % n:
        return None
    block = len(rows) // n
    return block if torch.equal(rows.cpu(), row_diffs(n, block)) else None


def _adder(layer: Layer, block: int | None, name: str) -> Add | None:
    if name not in layer.factors.a:
        return None
    a, b, rows, strength = layer.factors.a[name], layer.factors.b[name], layer.rows, layer.strength

    def scaled(h: Float[Tensor, "batch time rank"]) -> Float[Tensor, "batch time rank"]:
        if isinstance(strength, Tensor):
            return h * strength.to(h)[:, None, None]
        return h if strength == 1.0 else h * strength

    def shared(x: Tensor, y: Tensor) -> Tensor:
        h = scaled(F.linear(x, a[0].to(x.dtype)))
        return y + F.linear(h, b[0].to(x.dtype))

    def per_row(x: Tensor, y: Tensor) -> Tensor:
        batch, time, _ = x.shape
        if block is None:
            ra, rb, n = a[rows].to(x.dtype), b[rows].to(x.dtype), batch
        else:
            ra, rb, n = a.to(x.dtype), b.to(x.dtype), len(a)
        h = torch.bmm(x.reshape(n, -1, x.shape[-1]), ra.mT)
        h = scaled(h.view(batch, time, -1)).reshape(n, -1, ra.shape[1])
        return torch.baddbmm(y.reshape(n, -1, y.shape[-1]), h, rb.mT).view(batch, time, -1)

    return shared if rows is None else per_row
