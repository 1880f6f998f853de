"""The bank: many low-rank diffs on one frozen base model at once, a different one for every row of a batch.

For row `b` with diff `n(b)`: `y = x Wᵀ + s·(x A_nᵀ) B_nᵀ`, for each stack laid over the model; the product
`B A` is never formed. Rows are batch rows, or, where all conversations lie end to end, single tokens. It doesn't
know what the diffs mean: finetuning, adapter training and asking share it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from itertools import accumulate
from types import MethodType

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from weightdiff.blocks import Run, block_linear, blocks_of
from weightdiff.diff import Columns, Factors


@dataclass
class Layer:
    """One stack of diffs, and which row of the batch takes which.

    Attributes:
        factors: the stacked diffs; as `Columns`, long runs of rows must take the same diff.
        rows: index of the diff of each row; None where every row takes diff 0 (the DIT adapter).
        strength: factor on the change, per row or one number for all.
    """

    factors: Factors | Columns
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
    runs, changed = [_runs(layer) for layer in layers], []
    spans_of = cache(lambda kinds, tokens: _spans(layers, runs, kinds, tokens))
    try:
        for name, module in targets.items():
            there = [i for i, layer in enumerate(layers) if name in layer.factors.a]
            if not there:
                continue
            if any(runs[i] for i in there) and all(runs[i] is not None for i in there):
                stacked = _stacked([(i, layers[i]) for i in there], name, module.weight.dtype, spans_of)
                module.laid = stacked  # type: ignore
                module.forward = MethodType(_through_blocks, module)  # type: ignore[method-assign]
            else:
                module.laid = [_adder(layers[i], name, module.weight.dtype) for i in there]  # type: ignore
                module.forward = MethodType(_row_by_row, module)  # type: ignore[method-assign]
            changed.append(module)
        yield
    finally:
        for module in changed:
            del module.forward, module.laid  # the instance's own; the class's method shows again


_LONG = 8
"""Rows of one diff on end from which going through them in blocks costs less than one batched product."""


def _runs(layer: Layer) -> list[Run] | None:
    """Stretches of rows with one diff; none for a layer that all rows take, None where they are short."""
    if layer.rows is None:
        return []
    values, counts = torch.unique_consecutive(layer.rows.cpu(), return_counts=True)
    if len(layer.rows) < _LONG * len(values) and isinstance(layer.factors, Factors):
        return None
    ends = counts.cumsum(0).tolist()
    return list(zip(values.tolist(), [0, *ends[:-1]], ends, strict=True))


Kind = tuple[int, tuple[int, ...], bool]
"""Which layer, where the columns of each of its diffs begin in a module, and are they trained: modules alike share
their spans."""


@dataclass(frozen=True)
class _Stacked:
    """What lies over one module: all layers' factors, column after column, and which tokens go through which.

    Attributes:
        a, b: `[columns, in]` and `[columns, out]`, in the base model's precision.
        spans, gates: as `block_linear` takes them, for one token in each row.
        spans_of: from another number of tokens to theirs.
    """

    a: Float[Tensor, "columns in"]
    b: Float[Tensor, "columns out"]
    spans: Int[Tensor, "spans 5"]
    gates: Tensor
    spans_of: Callable[[int], tuple[Tensor, Tensor]]


def _stacked(layers: Sequence[tuple[int, Layer]], name: str, dtype: torch.dtype, spans_of: Callable) -> _Stacked:
    a, b, kinds = [], [], []
    for i, layer in layers:
        one, two = layer.factors.a[name], layer.factors.b[name]
        if isinstance(layer.factors, Factors):
            ranks = [one.shape[1]] * len(one)
            one, two = one.flatten(0, 1), two.mT.flatten(0, 1)
        else:
            ranks = layer.factors.ranks[name]
        a.append(one.to(dtype))
        b.append((two if isinstance(layer.strength, Tensor) else two * layer.strength).to(dtype))
        kinds.append((i, tuple(accumulate(ranks, initial=0)), one.requires_grad))
    of_tokens = partial(spans_of, tuple(kinds))
    rows = max(len(layer.rows) for _, layer in layers if layer.rows is not None)
    spans, gates = of_tokens(rows)
    return _Stacked(torch.cat(a), torch.cat(b), spans, gates, of_tokens)


def _spans(
    layers: Sequence[Layer], runs: Sequence[list[Run] | None], kinds: Sequence[Kind], tokens: int
) -> tuple[Tensor, Tensor]:
    """The spans of `tokens` tokens, as many for each row, and their gates."""
    spans, gates, offset = [], [], 0
    for i, starts, learn in kinds:
        layer, stretches, strength = layers[i], [(0, 0, tokens)], None
        if layer.rows is not None:
            width = tokens // len(layer.rows)
            stretches = [(n, start * width, end * width) for n, start, end in runs[i] or ()]
            if isinstance(layer.strength, Tensor):
                strength = layer.strength.repeat_interleave(width)
        device = next(iter(layer.factors.a.values())).device
        for block in blocks_of(stretches, starts, strength, device):
            columns = (offset + starts[n] for n in block.diffs)
            spans.append((*columns, *block.tokens, learn))
            gates.append(block.gate.flatten())
        offset += starts[-1]
    return torch.tensor(spans), torch.cat(gates)


def _through_blocks(self: nn.Linear, x: Float[Tensor, "batch time in"]) -> Float[Tensor, "batch time out"]:
    flat = x.reshape(-1, x.shape[-1])
    laid: _Stacked = self.laid  # type: ignore
    # Only packed rows are compiled, and there each token is a row of its own.
    packed = torch.compiler.is_compiling() or x.shape[0] == 1
    spans, gates = (laid.spans, laid.gates) if packed else laid.spans_of(flat.shape[0])
    y, _ = block_linear(flat, self.weight, self.bias, laid.a, laid.b, spans, gates)
    return y.view(*x.shape[:-1], -1)


Add = Callable[[Tensor, Tensor], Tensor]


def _row_by_row(self: nn.Linear, x: Float[Tensor, "batch time in"]) -> Float[Tensor, "batch time out"]:
    y = F.linear(x, self.weight, self.bias)
    for add in self.laid:  # type: ignore[attr-defined]
        y = add(x, y)
    return y


def _adder(layer: Layer, name: str, dtype: torch.dtype) -> Add:
    """A layer's change of one module, added to rows each of which has a diff of its own, or all the same.

    The factors are gathered, scaled and cast here, once, and not at every token that is decoded.
    """
    a, b, rows, strength = layer.factors.a[name], layer.factors.b[name].mT, layer.rows, layer.strength
    a, b = (a[0], b[0]) if rows is None else (a[rows], b[rows])
    scaled = b * (strength[:, None, None] if isinstance(strength, Tensor) else strength)
    a, b = a.to(dtype), scaled.to(dtype).contiguous()

    def shared(x: Tensor, y: Tensor) -> Tensor:
        return torch.addmm(y.flatten(0, -2), x.flatten(0, -2) @ a.T, b).view_as(y)

    def single(x: Tensor, y: Tensor) -> Tensor:
        mine, out = x.reshape(len(a), -1, x.shape[-1]), y.view(len(a), -1, y.shape[-1])
        if a.shape[1] == 1:  # of rank 1 a batched product takes six times as long as going through the numbers
            return torch.addcmul(out, (mine * a).sum(-1, keepdim=True), b).view_as(y)
        return torch.baddbmm(out, mine @ a.mT, b).view_as(y)

    return shared if rows is None else single
