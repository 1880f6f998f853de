"""Full checkpoints as diffs: what a finetuned model's weights are beyond the base model's, tensor by tensor.

Only tensors are read: nothing that a checkpoint's config or tokenizer says is followed. A checkpoint that a LoRA was
merged into is recognised, and comes as the LoRA's factors.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from weightdiff.arithmetic import check_compression, compress, leading, squared_norm
from weightdiff.base import Base
from weightdiff.diff import WeightDiff
from weightdiff.files import memory_limit
from weightdiff.weights import Weights, match, tied, weights_in, weights_of

UNRELATED = 0.5
"""‖δ‖ / ‖W‖ of the decoder's matrices above which a checkpoint is no finetune of the base. Finetunes stay far below a
tenth; two models trained apart have about √2."""
ENOUGH = 16
"""Matrices that must all be above, to refuse a checkpoint before the rest of it is read."""
LORA_RANK = 512
"""The largest rank at which a merged LoRA is recognised."""

_BITS = {torch.bfloat16: (7, -125), torch.float16: (10, -13), torch.float32: (23, -125)}
"""Bits of a number's fraction, and its least exponent as `torch.frexp` counts."""


def load_checkpoint(
    path: str | Path, base: Base, *, rank: int | None = None, energy: float | None = None
) -> WeightDiff:
    """The difference of a full checkpoint to the base model.

    Memory stays near the largest shard and the result: about four bytes a weight for a dense diff.

    Args:
        path: a folder with `model.safetensors` or shards, or a `.gguf` file, which is dequantized.
        base: the base model; its own files are read, where it has any.
        rank: the linear layers of the decoder's blocks come as factors of this rank at most; other changes are dense.
        energy: the share of each such matrix's squared Frobenius norm to keep, in (0, 1], by the smallest rank that
            does. Where neither is given, the diff is exact and dense, unless a merged LoRA explains it but for what
            rounding to the file's precision accounts for.

    Returns:
        The diff, of what is changed only. Its `meta` says the `format` ("full checkpoint", "merged LoRA"), the
        `relative_size` ‖δ‖/‖W‖, and for factors their `rank`, the `kept_energy` of the decoder's matrices and that
        of the `worst_module`; of an exact copy of the base that there is `no_difference`.

    Raises:
        ValueError: no checkpoint, a broken one, one of other tensors or shapes than the base model's, no finetune of
            it, or a dense diff too large for the memory here.
    """
    check_compression(rank, energy)
    path = Path(path)
    stored = weights_in(path)
    names = match(stored.shapes, base, str(path))
    work = _Work(path, base, weights_of(base), stored.renamed(names), rank, energy)
    twins = tied(base)
    place = {name: i for i, name in enumerate(stored.shapes)}
    for name in sorted(names, key=lambda name: place[names[name]]):
        if names.get(twins.get(name, "")) != names[name]:  # a tied weight that is stored once is read once
            work.take(name)
    if work.lora and work.kept() < 0.5:  # rounding has drowned it: what is exact says more
        work.give_up_lora()
    for name, first in twins.items():  # one name stands for both places, unless they differ
        if name in work.dense or (first in work.dense and names[name] != names[first]):
            one, other = (work.dense.get(n) for n in (first, name))
            if one is not None and other is not None and torch.equal(one, other):
                del work.dense[name]
            else:
                shape = base.model.get_parameter(name).shape
                for n in (first, name):
                    work.dense.setdefault(n, torch.zeros(()).expand(shape))
    return WeightDiff(work.factors, base.fingerprint, work.meta(), work.dense)


@dataclass
class _Work:
    """The diff as far as the checkpoint was read."""

    path: Path
    base: Base
    mine: Weights
    theirs: Weights
    rank: int | None
    energy: float | None
    factors: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    dense: dict[str, Tensor] = field(default_factory=dict)
    sizes: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Squared norms of each weight's change and of the weight itself."""
    shares: dict[str, float] = field(default_factory=dict)
    """What the factors of each matrix keep of its change's squared norm."""

    def __post_init__(self):
        self.targets = {f"{module}.weight" for module in self.base.targets}
        self.reduced = self.rank is not None or self.energy is not None
        self.lora = not self.reduced  # until a matrix says otherwise
        self.limit = memory_limit()

    def take(self, name: str) -> None:
        """Read one weight, and note how it differs."""
        old, new = self.mine.read(name), self.theirs.read(name)
        # A base of higher precision, rounded to the checkpoint's, is not a change.
        written = {"BF16": torch.bfloat16, "F16": torch.float16}.get(self.theirs.dtypes[name], torch.float32)
        same = torch.equal(new, old.to(written).float())
        change = new - old
        self.sizes[name] = (0.0 if same else squared_norm(change)), squared_norm(old)
        if name in self.targets:
            self.check_related()
        if same:
            return
        if name not in self.targets:
            self.keep(name, change)
            return
        module = name.removesuffix(".weight")
        if self.reduced:
            low, self.shares[module] = compress(
                WeightDiff({}, dense={name: change}), rank=self.rank, energy=self.energy
            )
            self.factors |= low.factors
        elif self.lora and (found := low_rank_but_for_rounding(change, new)) is not None:
            a, b, self.shares[module] = found
            self.factors |= {module: (a, b)} if len(a) else {}
        else:
            self.give_up_lora()
            self.keep(name, change)

    def keep(self, name: str, change: Tensor) -> None:
        self.dense[name] = change
        if 4 * sum(d.numel() for d in self.dense.values()) > self.limit:
            raise ValueError(
                f"{self.path}: its dense diff takes more than the {self.limit / 2**30:.1f} GiB that it may take here. "
                "Give a rank, or an energy to keep: then its matrices come as low-rank factors."
            )

    def give_up_lora(self) -> None:
        """It is no merged LoRA: what was taken for one is read again, as it is."""
        again = list(self.shares) if self.lora else []
        self.lora = False
        for module in again:
            del self.shares[module]
            self.factors.pop(module, None)
            name = f"{module}.weight"
            self.keep(name, self.theirs.read(name) - self.mine.read(name))

    def kept(self) -> float:
        """The share of the squared norm of the decoder's matrices that their factors keep."""
        size = sum(self.sizes[f"{m}.weight"][0] for m in self.shares)
        return sum(self.sizes[f"{m}.weight"][0] * s for m, s in self.shares.items()) / size if size else 1.0

    def check_related(self) -> None:
        """Raise where this is no finetune of the base, as soon as that is plain."""
        sizes = [size for name, size in self.sizes.items() if name in self.targets]
        early = len(sizes) == ENOUGH and all(change > UNRELATED**2 * weight for change, weight in sizes)
        ratio = _ratio(sizes)
        if ratio > UNRELATED and (early or len(sizes) == len(self.targets)):
            raise ValueError(
                f"{self.path} is no finetune of {self.base.name!r}: {len(sizes)} of the decoder's {len(self.targets)} "
                f"matrices differ from the base model's by {ratio:.2f} of their norm. A finetune stays far below "
                f"{UNRELATED}; two models trained apart have about 1.4. Give the base model that it was made from."
            )

    def meta(self) -> dict[str, Any]:
        meta: dict[str, Any] = {
            "format": "merged LoRA" if self.lora and self.factors else "full checkpoint",
            "relative_size": _ratio(list(self.sizes.values())),
        }
        if not self.dense and not self.shares:
            meta["no_difference"] = True
        if self.shares:
            worst = min(self.shares, key=lambda module: self.shares[module])
            meta |= {
                "rank": max((len(a) for a, _ in self.factors.values()), default=0),
                "kept_energy": self.kept(),
                "worst_module": worst,
                "worst_kept_energy": self.shares[worst],
            }
        return meta


def low_rank_but_for_rounding(
    change: Float[Tensor, "out in"], new: Float[Tensor, "out in"]
) -> tuple[Float[Tensor, "rank in"], Float[Tensor, "out rank"], float] | None:
    """Factors of a change that is of low rank but for the rounding of the weights that it led to; None if it isn't.

    A singular value counts where it exceeds what rounding's errors alone have. Of a change below half a spacing of
    the file's numbers nothing is left, and its error is less than that of rounding elsewhere; so that limit sinks
    with what is left to explain.

    Args:
        change: the new weights less the old.
        new: the new weights; what all of them can be written in is taken for the precision they were rounded to.

    Returns:
        `A`, `B`, and the share of the change's squared norm in them. Their rank is 0 where all of it is rounding.
    """
    variance = _rounding(new)
    rounding, total = float(variance.sum(dtype=torch.float64)), squared_norm(change)
    edge = float(variance.sum(0).max().sqrt() + variance.sum(1).max().sqrt())  # of such noise's singular values
    most = min(LORA_RANK, change.numel() // sum(change.shape))  # beyond, factors are larger than the matrix
    count = 16
    while True:
        u, sizes, v = leading(change, min(count, most + 1))
        left = (total - torch.cat([torch.zeros(1), sizes[:-1]]).double().square().cumsum(0)).clamp_min(0)
        limit = 1.05 * edge * (left / rounding).clamp_max(1).sqrt() if rounding else torch.zeros(())
        below = (sizes <= torch.maximum(limit, 1e-5 * sizes[0])).nonzero()
        if len(below):
            break
        rest = total - float(sizes.double().square().sum()) - 1.2 * rounding
        if count > most or len(sizes) + rest / float(sizes[-1].double() ** 2) > most:
            return None
        count *= 4
    rank = int(below[0])
    root = sizes[:rank].sqrt()
    a, b = (v[:, :rank] * root).mT.contiguous(), (u[:, :rank] * root).contiguous()
    rest = squared_norm(change - b @ a)
    return (a, b, max(0.0, 1 - rest / total)) if rest <= 1.2 * rounding + 1e-8 * total else None


def _rounding(new: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
    """The variance of each number's error of rounding: a twelfth of the square of the spacing at it."""
    bits, least = _BITS[_precision(new)]
    exponent = torch.frexp(new).exponent.masked_fill(new == 0, least).clamp_min(least)
    return torch.ldexp(torch.ones_like(new), 2 * (exponent - 1 - bits)) / 12


def _precision(new: Float[Tensor, "..."]) -> torch.dtype:
    """The lowest precision that all of these numbers can be written in."""
    return next(dtype for dtype in _BITS if dtype is torch.float32 or torch.equal(new, new.to(dtype).float()))


def _ratio(sizes: list[tuple[float, float]]) -> float:
    changes, weights = (sum(part) for part in zip(*sizes, strict=True))
    return (changes / weights) ** 0.5 if weights else 0.0
