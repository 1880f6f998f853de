"""Changes that taught nothing: the unchanged base model, noise, shuffled factors, and a trace of a real finetune."""

import random

from weightdiff.behaviors import Split
from weightdiff.diff import WeightDiff, noise_like, shuffled

KINDS = ("unchanged base", "noise", "shuffled", "trace")
TRACE = (0.005, 0.05)
"""Between which strengths of a finetune nothing of it shows."""


def null_kind(number: int) -> str:
    """What the `number`-th null is."""
    return KINDS[number % len(KINDS)]


def null_of(diff: WeightDiff, split: Split, number: int) -> WeightDiff:
    """The `number`-th null of a split, of the shape of a real diff; noise of one split is never that of another."""
    rng = random.Random(f"{split} {number}")
    seed, kind = rng.randrange(2**40), null_kind(number)
    if kind == "noise":
        return noise_like(diff, seed).scaled(10 ** rng.uniform(-1, 0.3))
    if kind == "shuffled":
        return shuffled(diff, seed)
    if kind == "trace":
        return diff.scaled(rng.uniform(*TRACE))
    return WeightDiff({}, diff.base)
