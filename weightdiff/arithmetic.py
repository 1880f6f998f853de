"""Sums and comparisons of diffs, exact on their factors: no product `B A` is formed for low-rank diffs.

A sum has the ranks of both; `compress` brings it down again, without loss where it has less.
"""

from collections.abc import Iterator, Sequence
from heapq import nlargest

import torch
from jaxtyping import Float
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
    _check_ends(first, second)
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
    return WeightDiff(factors, first.base if first.base == second.base else None, {}, dense)


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


def compress(diff: WeightDiff, *, rank: int | None = None, energy: float | None = None) -> tuple[WeightDiff, float]:
    """The nearest diff of low rank: of dense matrices by randomized SVD, of factors exactly.

    Args:
        diff: what isn't a matrix of a numbered block stays dense, embeddings and head too: those may be tied, and
            factors change a module alone where a dense change changes both places.
        rank: of every module, at most.
        energy: the share of each module's squared Frobenius norm to keep at least, in (0, 1]; with the smallest rank
            that does. Give one of the two, or both: then the rank is the smaller.

    Returns:
        The diff, and the share of the whole's squared norm that it keeps; 1 where there was nothing.

    Raises:
        ValueError: neither is given, or one is out of its range.
    """
    check_compression(rank, energy)
    if rank is None and energy is None:
        raise ValueError("compress needs a rank or an energy (a share of the squared norm); neither was given.")
    matrices = [
        name.removesuffix(".weight")
        for name, change in diff.dense.items()
        if change.dim() == 2 and name.endswith(".weight") and any(part.isdigit() for part in name.split("."))
    ]
    factors, dense = {}, {name: d for name, d in diff.dense.items() if name.removesuffix(".weight") not in matrices}
    before = after = sum(squared_norm(change) for change in dense.values())
    for module in dict.fromkeys([*diff.factors, *matrices]):
        u, sizes, v, whole = (
            _of_matrix(diff.to_dense(module), rank, energy)
            if module in matrices
            else _of_factors(*diff.factors[module])
        )
        keep = _enough(sizes, whole, rank, energy)
        root = sizes[:keep].sqrt()
        if keep:
            factors[module] = ((v[:, :keep] * root).mT.float().contiguous(), (u[:, :keep] * root).float())
        before, after = before + whole, after + float(sizes[:keep].square().sum())
    return WeightDiff(factors, diff.base, diff.meta, dense), min(1.0, after / before) if before else 1.0


def check_compression(rank: int | None, energy: float | None) -> None:
    """Raise a ValueError for a rank or a share of the squared norm that can't be."""
    if rank is not None and rank < 1:
        raise ValueError(f"rank is {rank}; expected at least 1.")
    if energy is not None and not 0 < energy <= 1:
        raise ValueError(f"energy is {energy}; expected a share of the squared norm, above 0 and at most 1.")


def leading(
    matrix: Float[Tensor, "out in"], count: int
) -> tuple[Float[Tensor, "out k"], Float[Tensor, " k"], Float[Tensor, "in k"]]:
    """The largest singular values, largest first, and their vectors: `matrix ≈ U diag(S) Vᵀ`.

    By randomized SVD, always with the same random numbers; exactly where `count` is a third of all or more, as that
    is no slower then.
    """
    if 3 * count >= min(matrix.shape):
        u, sizes, v = torch.linalg.svd(matrix, full_matrices=False)
        return u[:, :count], sizes[:count], v[:count].mT
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        u, sizes, v = torch.svd_lowrank(matrix, count + _MORE, niter=4)
    return u[:, :count], sizes[:count], v[:, :count]


def squared_norm(tensor: Float[Tensor, "..."]) -> float:
    """The squared Frobenius norm, in float64, a part at a time: a copy of an embedding would take as much again."""
    return sum(float(part.double().square().sum()) for part in tensor.flatten().split(1 << 20))


_MORE = 16
"""Singular values that the randomized SVD seeks beyond those that are wanted: the last ones are the least exact."""


def _of_matrix(
    matrix: Float[Tensor, "out in"], rank: int | None, energy: float | None
) -> tuple[Tensor, Tensor, Tensor, float]:
    """As many leading singular values as are needed, their vectors, and the squared norm of the whole matrix."""
    most = min(min(matrix.shape), rank or min(matrix.shape))
    whole = squared_norm(matrix)
    count = most if energy is None else min(16, most)
    while True:
        u, sizes, v = leading(matrix.float(), count)
        if energy is None or count == most or float(sizes.double().square().sum()) >= energy * whole:
            return u, sizes, v, whole
        count = min(2 * count, most)


def _of_factors(a: Float[Tensor, "rank in"], b: Float[Tensor, "out rank"]) -> tuple[Tensor, Tensor, Tensor, float]:
    """The same of `B A`, exactly, from the factors' own QR."""
    (qa, ra), (qb, rb) = torch.linalg.qr(a.mT.double()), torch.linalg.qr(b.double())
    u, sizes, v = torch.linalg.svd(rb @ ra.mT, full_matrices=False)
    return qb @ u, sizes, qa @ v.mT, float(sizes.square().sum())


def _enough(sizes: Float[Tensor, " k"], whole: float, rank: int | None, energy: float | None) -> int:
    """How many of the singular values keep the share `energy`, but for rounding; at most `rank`."""
    found = int((sizes > 1e-7 * sizes[:1]).sum())
    if energy is not None:
        sums = sizes.double().square().cumsum(0)
        found = min(found, int((sums < (energy - 1e-7) * whole).sum()) + 1)
    return min(found, rank or found)


def _check_ends(first: WeightDiff, second: WeightDiff) -> None:
    """Raise where embeddings and head are changed in two manners: one tied weight or two places, that can't be told."""
    ends = [
        {n for n in (*d.factors, *d.dense) if "norm" not in n and not any(part.isdigit() for part in n.split("."))}
        for d in (first, second)
    ]
    if all(ends) and ends[0] != ends[1]:
        raise ValueError(
            f"one diff changes {sorted(ends[0])}, the other {sorted(ends[1])}: where the base model ties these, the "
            "sum can't be told. Leave them out of one (convert … --leave-out), or merge one first."
        )


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
