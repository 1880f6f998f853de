"""Is a stranger's diff, which carries no fingerprint, a finetune of this base model at all?

Three signs, none of them proof: the base model that its config names; whether it lies along the directions that the
base model's own weights stress, as gradients make every finetune do; and whether the model still knows plain text.
"""

import os
from dataclasses import dataclass
from math import sqrt

import torch
from jaxtyping import Float
from torch import Tensor

from weightdiff.arithmetic import leading
from weightdiff.bank import Layer, lay_over
from weightdiff.base import ALIASES, Base
from weightdiff.dense import changed, check_fits, split
from weightdiff.diff import WeightDiff, stack
from weightdiff.hub import is_hub_id
from weightdiff.printable import printable

ALIGNED = 4.0
"""Standard deviations above chance from which a diff lies along the base model's directions. Measured on the embedded
model: see docs/formats.md."""
INCOHERENT = 2.0
"""Nats of loss on plain text that a finetune may add before it's called incoherent."""

_PROBES, _DIRECTIONS = 64, 8
_TEXT = (
    "The river runs through the valley and reaches the sea after three hundred miles.",
    "She put the letters into the drawer, locked it, and went to work.",
    "Water boils at a lower temperature on a high mountain than it does at sea level.",
    "The committee will meet again in March to discuss the budget for the next year.",
    "Most birds build their nests in spring, when food for their young is easy to find.",
    "If you would like to cancel your order, please call us before noon on Friday.",
)


class DoubtfulBase(UserWarning):
    """A diff that carries no fingerprint doesn't look like a finetune of the base model that was given."""


@dataclass(frozen=True)
class Plausibility:
    """What was checked of one diff, and what came out.

    Attributes:
        declared: the base model that its files name, None if they name none.
        named: is that this base model? None where it can't be told, of a folder elsewhere for one.
        alignment: in standard deviations of a random diff of the same shapes; None for a diff without factors.
        losses: mean loss per token on plain text of the base model, and with the diff.
    """

    declared: str | None
    named: bool | None
    alignment: float | None
    losses: tuple[float, float]

    @property
    def doubts(self) -> list[str]:
        """What speaks against this base model; empty where nothing does."""
        found = []
        if self.named is False:
            found.append(f"it names another base model, {printable(self.declared)!r}")
        if self.alignment is not None and not self.alignment >= ALIGNED:  # NaN is a doubt
            found.append(
                f"it lies along this model's directions little more than chance would (z {self.alignment:.1f})"
            )
        if not self.losses[1] - self.losses[0] <= INCOHERENT:
            found.append(f"with it the model is incoherent (loss on plain text {_nats(self.losses)})")
        return found

    def __str__(self) -> str:
        """One sentence: what was checked, and the doubts."""
        declared = f"it names {printable(self.declared)!r}" if self.declared else "it names none"
        name = {True: "this one", False: "another", None: "which can't be compared"}[self.named]
        aligned = "nothing to compare" if self.alignment is None else f"z {self.alignment:.1f}"
        checked = (
            f"shapes fit; {declared}{f', {name}' if self.declared else ''}; along this model's directions: {aligned}; "
            f"loss on plain text {_nats(self.losses)}"
        )
        head = "it carries no fingerprint of its base model"
        if self.doubts:
            return f"{head}, and this one is doubtful: {'; '.join(self.doubts)}. Checked: {checked}."
        return f"{head}; this one is plausible. Checked: {checked}."


def _nats(losses: tuple[float, float]) -> str:
    return f"{losses[0]:.2f} to {losses[1]:.2f}"


class ForeignCheck:
    """Checks diffs without fingerprint against one base model: a second for the first, less for further ones.

    Args:
        base: the base model.
    """

    def __init__(self, base: Base):
        self.base = base
        self._targets = base.targets
        self._plain = _loss(base)
        self._chance: dict[str, tuple[tuple[float, float], tuple[float, float]]] = {}

    def __call__(self, diff: WeightDiff) -> Plausibility:
        """What speaks for and against this base model.

        Raises:
            ValueError: the diff's shapes don't fit the base model's.
        """
        check_fits(self.base, diff)
        name = diff.meta.get("base_name")
        declared = name[:200] if isinstance(name, str) and name else None
        named = _same_name(self.base, declared) if declared else None
        return Plausibility(declared, named, self.alignment(diff), (self._plain, _loss(self.base, diff)))

    def alignment(self, diff: WeightDiff) -> float | None:
        """How far a diff lies along the base weights' own strong directions, in standard deviations of chance.

        For each module the base weight `W` says how strongly it answers to a direction `a` of its input, `‖W a‖²`, and
        `b` of its output, `‖Wᵀ b‖²`, against what random directions of that size would give. A finetune's factors are
        made of gradients, which are sums of what the base model sends along those directions; another model's are,
        seen from here, random. `A` often begins at random itself, so that the side which says more is taken.

        Returns:
            None where the diff changes none of the decoder's linear layers.
        """
        scores: tuple[list[float], list[float]] = ([], [])
        for name, module in self._targets.items():
            if (pair := _directions(diff, name)) is None:
                continue
            weight = module.weight.detach().float()
            a, b = (factor.to(weight.device) / factor.abs().max().clamp_min(1e-30) for factor in pair)
            inner, outer = a @ a.mT, b.mT @ b  # of the change B A only these and the products with W matter
            size = (inner * outer).sum()
            if not size > 0:
                continue
            apart = size / (inner @ outer @ inner @ outer).trace().sqrt()  # √ of how many directions it is worth
            if name not in self._chance:
                self._chance[name] = (_chance(weight), _chance(weight.mT))
            answers = ((weight @ a.mT).mT @ (weight @ a.mT) * outer, (weight.mT @ b).mT @ (weight.mT @ b) * inner)
            for side, found, (mean, deviation) in zip(scores, answers, self._chance[name], strict=True):
                side.append(float((found.sum() / size - mean) / deviation * apart))
        return max(sum(side) / sqrt(len(side)) for side in scores) if scores[0] else None


def _directions(diff: WeightDiff, name: str) -> tuple[Tensor, Tensor] | None:
    """The factors of a module's change; of a dense one those of its leading directions."""
    if name in diff.factors:
        return diff.factors[name]
    if (change := diff.dense.get(f"{name}.weight")) is None or not change.any():
        return None
    u, sizes, v = leading(change.float(), _DIRECTIONS)
    return (v * sizes).mT, u


def _chance(weight: Float[Tensor, "out in"]) -> tuple[float, float]:
    """Mean and standard deviation of `‖W x‖²` over random directions `x` of length one."""
    width = weight.shape[1]
    probes = torch.randn(width, _PROBES, generator=torch.Generator().manual_seed(0)).to(weight.device)
    trace = float(weight.square().sum())
    squared = float((weight.mT @ (weight @ probes)).square().sum(0).mean())  # Hutchinson's estimate of tr (WᵀW)²
    variance = 2 / (width * (width + 2)) * (squared - trace**2 / width)
    return trace / width, sqrt(max(variance, 1e-30))


def _same_name(base: Base, declared: str) -> bool | None:
    """Whether the declared name is this base model's; None where either is a folder's, which may hold anything."""
    names = {base.name, *(alias for alias, name in ALIASES.items() if name == base.name)}
    ours, theirs = {_published(name) for name in names} - {None}, _published(declared)
    if declared in names:
        return True
    if base.source is not None and os.path.isdir(declared):  # of a name too long for a folder it says no
        return base.source.samefile(declared) or None
    return theirs in ours if ours and theirs else None


def _published(name: str) -> str | None:
    """A hub id without its revision; None for a folder's name."""
    return name.partition("@")[0] if name.count("/") == 1 and is_hub_id(name) else None


@torch.no_grad()
def _loss(base: Base, diff: WeightDiff | None = None) -> float:
    """Mean loss per token on plain text, of the base model or with a diff."""
    if diff is not None:
        inside, rest = split(diff, base.targets)
        layers = [Layer(stack([inside], base.shapes).to(base.device))] if inside.factors else []
        with changed(base, rest), lay_over(base.targets, layers):
            return _loss(base)
    rows = [base.tokenizer(text)["input_ids"] for text in _TEXT]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=base.device)  # nothing looks ahead
    real = torch.tensor([[True] * (len(row) - 1) + [False] * (width - len(row)) for row in rows], device=base.device)
    logp = base.model(input_ids=ids).logits[:, :-1][real].float().log_softmax(-1)
    return -float(logp.gather(1, ids[:, 1:][real][:, None]).mean())
