"""WeightDiff: what a finetune changed, as named low-rank factors or dense; and how many of them are stacked.

Knows nothing of files or of a running model. A diff's scaling (PEFT's alpha / rank) is folded into `B`,
so that a change is always `B A` and two diffs can be compared without asking how they were made.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class WeightDiff:
    """One weight diff: `W' = W + B A` for each named module, `W' = W + D` for each densely changed parameter.

    Factors are a module's: of an embedding whose weight is tied to the output head they change the embedding alone,
    as PEFT's do. A dense change is a parameter's: of a tied one it changes both places, unless the diff names both.

    Attributes:
        factors: module name to `(A [rank, in], B [out, rank])`, for a weight of `[out, in]`, an embedding's
            `[vocabulary, width]` too; ranks may differ between modules.
        base: fingerprint of the base model, None where the source didn't say.
        meta: what else is known of it (label, question, recipe, …); plain JSON values.
        dense: parameter name to its change, of the parameter's own shape: a full finetune, or one of some weights.
    """

    factors: Mapping[str, tuple[Float[Tensor, "rank in"], Float[Tensor, "rank_out rank"]]]
    base: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    dense: Mapping[str, Float[Tensor, "..."]] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """The largest rank of any module; 0 for the empty diff."""
        return max((a.shape[0] for a, _ in self.factors.values()), default=0)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "WeightDiff":
        """The same change on a device, in its precision or another."""
        factors = {k: (a.to(device, dtype), b.to(device, dtype)) for k, (a, b) in self.factors.items()}
        return WeightDiff(factors, self.base, self.meta, {k: d.to(device, dtype) for k, d in self.dense.items()})

    def scaled(self, strength: float) -> "WeightDiff":
        """The same change, `strength` times as large."""
        factors = {k: (a, b * strength) for k, (a, b) in self.factors.items()}
        return WeightDiff(factors, self.base, self.meta, {k: d * strength for k, d in self.dense.items()})

    def restricted(self, keep: Callable[[str], bool]) -> "WeightDiff":
        """The change of those modules and parameters whose names are to be kept."""
        factors = {k: f for k, f in self.factors.items() if keep(k)}
        return WeightDiff(factors, self.base, self.meta, {k: d for k, d in self.dense.items() if keep(k)})

    def truncated(self, rank: int) -> "WeightDiff":
        """The nearest change of at most `rank` in each module; exact, from the factors' own QR and SVD.

        Raises:
            ValueError: the diff is dense.
        """
        _refuse_dense(self)
        factors = {}
        for name, (a, b) in self.factors.items():
            (qa, ra), (qb, rb) = torch.linalg.qr(a.mT.double()), torch.linalg.qr(b.double())
            u, size, v = torch.linalg.svd(rb @ ra.mT, full_matrices=False)
            root = size[:rank].sqrt()
            factors[name] = ((root[:, None] * (v[:rank] @ qa.mT)).to(a), (qb @ u[:, :rank] * root).to(b))
        return WeightDiff(factors, self.base, self.meta)

    def norms(self) -> dict[str, float]:
        """Frobenius norm per module; of `B A` from the Gram matrices: the product is never formed."""
        out = {}
        for name, (a, b) in self.factors.items():
            a, b = a.double(), b.double()
            out[name] = float(torch.sum((b.mT @ b) * (a @ a.mT)).clamp_min(0).sqrt())
        for parameter, change in self.dense.items():
            name = parameter.removesuffix(".weight")
            out[name] = float((self.to_dense(name) if name in self.factors else change).norm())
        return out

    def norm(self) -> float:
        """Frobenius norm of the whole change."""
        if self.dense:
            return sum(n * n for n in self.norms().values()) ** 0.5
        alike: dict[tuple[torch.Size, torch.Size], list[tuple[Tensor, Tensor]]] = {}
        for a, b in self.factors.values():
            alike.setdefault((a.shape, b.shape), []).append((a, b))
        total = 0.0
        for pairs in alike.values():  # modules of one shape at once: there are seven shapes, and two hundred modules
            a, b = (torch.stack(side).double() for side in zip(*pairs, strict=True))
            total += float(torch.sum((b.mT @ b) * (a @ a.mT)))
        return max(total, 0.0) ** 0.5

    def to_dense(self, module: str) -> Float[Tensor, "out in"]:
        """The change of one module's weight as a matrix; for tests and merging only."""
        dense = self.dense.get(f"{module}.weight")
        if module not in self.factors and dense is not None:
            return dense.float()
        a, b = self.factors[module]
        product = b.float() @ a.float()
        return product if dense is None else product + dense.float()


@dataclass
class Factors:
    """The factors of `n` diffs, stacked: what a bank lays over a model.

    Attributes:
        a: module name to `[n, rank, in]`.
        b: module name to `[n, out, rank]`.
    """

    a: dict[str, Float[Tensor, "n rank in"]]
    b: dict[str, Float[Tensor, "n out rank"]]

    def __len__(self) -> int:
        return next(iter(self.a.values())).shape[0] if self.a else 0

    def tensors(self) -> list[Tensor]:
        """All factors, `A`s first, in one fixed order."""
        return [*self.a.values(), *self.b.values()]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Factors":
        return Factors(
            {k: v.to(device, dtype) for k, v in self.a.items()},
            {k: v.to(device, dtype) for k, v in self.b.items()},
        )

    def unstack(self, base: str | None, metas: Sequence[dict[str, Any]], scale: float = 1.0) -> list[WeightDiff]:
        """Each diff on its own, detached, with `scale` folded into `B`."""
        return [
            WeightDiff(
                {k: (self.a[k][i].detach().clone(), self.b[k][i].detach() * scale) for k in self.a},
                base,
                dict(meta),
            )
            for i, meta in enumerate(metas)
        ]


@dataclass
class Columns:
    """The factors of `n` diffs of any ranks, one diff's after another's: stacked without the padding.

    Attributes:
        a: module name to `[columns, in]`.
        b: module name to `[columns, out]`.
        ranks: module name to each diff's rank there, 0 where it leaves the module as it is.
    """

    a: dict[str, Float[Tensor, "columns in"]]
    b: dict[str, Float[Tensor, "columns out"]]
    ranks: dict[str, tuple[int, ...]]


def is_adapter(diff: WeightDiff) -> bool:
    """Is it a DIT adapter? It alone has a question of its own."""
    return isinstance(diff.meta.get("question"), str)


def columns(diffs: Sequence[WeightDiff], device: torch.device | str) -> Columns:
    """Diffs of any ranks and modules, as a bank takes them where each has many tokens on end.

    Args:
        diffs: low-rank ones, that fit the base model.
        device: where they go; those that are there already needn't travel.
    """
    a: dict[str, Tensor] = {}
    b: dict[str, Tensor] = {}
    ranks: dict[str, tuple[int, ...]] = {}
    for name in dict.fromkeys(name for diff in diffs for name in diff.factors):
        there = [d.factors[name] for d in diffs if name in d.factors]
        a[name] = torch.cat([one.to(device) for one, _ in there])
        b[name] = torch.cat([two.to(device).mT for _, two in there])
        ranks[name] = tuple(d.factors[name][0].shape[0] if name in d.factors else 0 for d in diffs)
    return Columns(a, b, ranks)


def stack(diffs: Sequence[WeightDiff], shapes: Mapping[str, tuple[int, int]]) -> Factors:
    """Stack diffs of any ranks and modules; smaller ranks are padded with zeros, missing modules are zero.

    Args:
        diffs: at least one diff.
        shapes: module name to `(out, in)` of the base model's linear layers.

    Raises:
        ValueError: a diff's module is not in the base model, or its shape is another.
    """
    used = {name for diff in diffs for name in diff.factors}
    if not diffs:
        raise ValueError("no diffs given; expected at least one.")
    for diff in diffs:
        check_low_rank(diff, shapes)
    a: dict[str, Tensor] = {}
    b: dict[str, Tensor] = {}
    for name in [m for m in shapes if m in used]:
        out, inn = shapes[name]
        ranks = {d.factors[name][0].shape[0] if name in d.factors else 0 for d in diffs}
        if len(ranks) == 1:  # nothing to pad: one copy for all, where 16 diffs of 210 modules take 6,720 else
            a[name] = torch.stack([d.factors[name][0] for d in diffs]).float()
            b[name] = torch.stack([d.factors[name][1] for d in diffs]).float()
            continue
        rank = max(ranks)
        a[name] = torch.zeros(len(diffs), rank, inn)
        b[name] = torch.zeros(len(diffs), out, rank)
        for i, diff in enumerate(diffs):
            if name in diff.factors:
                da, db = diff.factors[name]
                a[name][i, : da.shape[0]] = da
                b[name][i, :, : db.shape[1]] = db
    return Factors(a, b)


def check_low_rank(diff: WeightDiff, shapes: Mapping[str, tuple[int, int]]) -> None:
    """Raise a ValueError for a diff that no bank can carry: a dense one, or one of other modules or shapes."""
    _refuse_dense(diff)
    check_shapes(diff, shapes)


def check_shapes(diff: WeightDiff, shapes: Mapping[str, tuple[int, int]]) -> None:
    """Raise a ValueError that names the first module of `diff` that doesn't fit, and both shapes."""
    for name, (a, b) in diff.factors.items():
        if name not in shapes:
            raise ValueError(
                f"the diff changes {name!r}, and the base model has no such linear layer in its blocks. "
                "Was it made on another base model? Give the right one with --base."
            )
        out, inn = shapes[name]
        if (b.shape[0], a.shape[1]) != (out, inn) or a.shape[0] != b.shape[1]:
            turned = " They look transposed." if (b.shape[-1], a.shape[0]) == (out, inn) else ""
            raise ValueError(
                f"{name!r}: the diff's factors A {list(a.shape)} and B {list(b.shape)} don't fit the base model's "
                f"weight [{out}, {inn}].{turned} Was it made on another base model? Give the right one with --base."
            )


def misfit(name: str, shape: Sequence[int], has: object) -> ValueError:
    """The error for a change of a parameter that the base model hasn't, or has in another shape."""
    return ValueError(
        f"the diff changes {name!r} of shape {list(shape)}, and the base model has {has}. "
        "Was it made on another base model? Give the right one with --base."
    )


def _refuse_dense(diff: WeightDiff) -> None:
    if diff.dense:
        raise ValueError("a dense diff was given where low-rank factors are expected; it is read one at a time.")


def noise_like(diff: WeightDiff, seed: int) -> WeightDiff:
    """A random diff with the same norm per module and dense tensor: a null that must be reported as nothing notable."""
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for name, norm in WeightDiff(diff.factors).norms().items():
        a, b = (torch.randn(f.shape, generator=generator) for f in diff.factors[name])
        size = float(torch.sum((b.mT @ b) * (a @ a.mT)).sqrt())
        factors[name] = (a, b * (norm / max(size, 1e-12)))
    dense = {}
    for name, change in diff.dense.items():
        noise = torch.randn(change.shape, generator=generator)
        dense[name] = noise * (float(change.float().norm()) / max(float(noise.norm()), 1e-12))
    return WeightDiff(factors, diff.base, {**diff.meta, "kind": "noise"}, dense)


def shuffled(diff: WeightDiff, seed: int) -> WeightDiff:
    """A diff with the entries of its factors in another order: the same numbers, and no meaning left.

    Raises:
        ValueError: the diff is dense.
    """
    _refuse_dense(diff)
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for name, (a, b) in diff.factors.items():
        columns, rows = (torch.randperm(n, generator=generator) for n in (a.shape[1], b.shape[0]))
        factors[name] = (a[:, columns], b[rows])
    return WeightDiff(factors, diff.base, {**diff.meta, "kind": "shuffled"})
