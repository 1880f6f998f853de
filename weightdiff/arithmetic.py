"""Sums and comparisons of diffs, exact on their factors: no product `B A` is formed for low-rank diffs.

A sum has the ranks of both; `WeightDiff.truncated` brings it down again without loss where it has less.
"""

from collections.abc import Iterator, Sequence
from heapq import nlargest

import torch
from torch import Tensor

from weightdiff.diff import WeightDiff
from weightdiff.store import Store


def add(first: WeightDiff, second: WeightDiff) -> WeightDiff:
    """The change that both make together: factors side by side, `[B₁ B₂]` and `[A₁; A₂]`; dense parts added.

    Where one changes a layer densely and the other by factors, the sum is dense there.

    Raises:
        ValueError: diffs of different base models, or of one module in different shapes.
    """
    _check_pair(first, second)
    factors, dense = {}, {}
    for name in {**first.factors, **second.factors}:
        parts = [d.factors[name] for d in (first, second) if name in d.factors]
        factors[name] = (torch.cat([a for a, _ in parts]), torch.cat([b for _, b in parts], 1))
    for name in {**first.dense, **second.dense}:
        dense[name] = sum((d.dense[name] for d in (first, second) if name in d.dense), torch.zeros(()))
        module = name.removesuffix(".weight")
        if module in factors:
            a, b = factors.pop(module)
            dense[name] = dense[name] + b @ a
    return WeightDiff(factors, first.base or second.base, {}, dense)


def subtract(first: WeightDiff, second: WeightDiff) -> WeightDiff:
    """What the first changes beyond the second; see `add`."""
    return add(first, second.scaled(-1.0))


def inner(first: WeightDiff, second: WeightDiff) -> float:
    """Sum over all weights of the product of both changes; of factors from their small Gram matrices, in float64.

    Raises:
        ValueError: see `add`.
    """
    _check_pair(first, second)
    total = 0.0
    for name, (a, b) in first.factors.items():
        if name in second.factors:
            c, d = second.factors[name]
            total += float(((b.double().mT @ d.double()) * (a.double() @ c.double().mT)).sum())
        if (dense := second.dense.get(f"{name}.weight")) is not None:
            total += float((b.double() * (dense.double() @ a.double().mT)).sum())
    for name, change in first.dense.items():
        if name in second.dense:
            total += float((change.double() * second.dense[name].double()).sum())
        if (pair := second.factors.get(name.removesuffix(".weight"))) is not None:
            a, b = pair
            total += float((b.double() * (change.double() @ a.double().mT)).sum())
    return total


def cosine(first: WeightDiff, second: WeightDiff) -> float:
    """Cosine between two changes, taken as one long vector of weights each; 0 where one changes nothing."""
    product, size = inner(first, second), first.norm() * second.norm()
    return product / size if size else 0.0


def nearest(
    diff: WeightDiff, store: Store, count: int = 5, ids: Sequence[str] | None = None
) -> list[tuple[str, float]]:
    """The diffs of a store that are most like this one, by cosine, the likest first.

    Args:
        diff: what to compare with.
        store: read one diff at a time; memory doesn't grow with it.
        count: how many.
        ids: only among these; all if None.

    Raises:
        ValueError: the diff is of another base model than the store; an id isn't in it.
    """
    wanted = list(store.ids() if ids is None else ids)

    def scored() -> Iterator[tuple[str, float]]:
        for identity, other in zip(wanted, store.diffs(wanted), strict=True):
            yield identity, cosine(diff, other)

    return nlargest(count, scored(), key=lambda found: found[1])


def _check_pair(first: WeightDiff, second: WeightDiff) -> None:
    if first.base and second.base and first.base != second.base:
        raise ValueError(
            f"the diffs are of different base models, {first.base} and {second.base}; they can't be compared or added."
        )
    for name in first.factors.keys() & second.factors.keys():
        shapes = [_shape(d.factors[name]) for d in (first, second)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{name!r} is {shapes[0]} in one diff and {shapes[1]} in the other; of one base model?")


def _shape(pair: tuple[Tensor, Tensor]) -> list[int]:
    return [pair[1].shape[0], pair[0].shape[1]]
