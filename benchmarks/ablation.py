"""What each of the library's ways to be fast gains in a finetuning step: the same work with one of them undone."""

from collections.abc import Callable
from contextlib import nullcontext
from unittest.mock import patch

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from benchmarks.finetuning import LOSS_GAP, Work, work_of
from benchmarks.measure import Check, Line, Result, Size, interleave, rate, relative_gap, speedup
from weightdiff import blocks, packed
from weightdiff.base import Base
from weightdiff.compiled import PAYS


def _logits(
    states: Float[Tensor, "labels hidden"], head: nn.Linear, label: Int[Tensor, " labels"]
) -> Float[Tensor, " labels"]:
    return F.cross_entropy(head(states).float(), label, reduction="none")


INSTEAD: dict[str, Callable] = {
    "as it is": nullcontext,
    "instead: nothing compiled": lambda: patch("benchmarks.finetuning.PAYS", PAYS - 1),
    "instead: torch's fused attention": lambda: patch.object(packed, "SHORT", 0),
    "instead: logits of all labels": lambda: patch("weightdiff.objective.cross_entropy", _logits),
    "instead: a product for each diff": lambda: patch.dict(blocks.COLUMNS, cpu=1),
}


def ablation(base: Base, size: Size) -> Result:
    """Answers only, tokens per second; many diffs with few rows each, where the ways differ most."""
    diffs, steps, learn = size.pick((32, 2, 1), (2, 1, 1))
    work = work_of(base, diffs, steps=steps, learn=learn, short=size.quick)
    seconds, found = interleave({name: _way(work, name) for name in INSTEAD}, size)
    whole = seconds["as it is"]
    lines = [
        Line(name, rate(work.tokens, took), "tokens/s", None if took is whole else speedup(whole, took))
        for name, took in seconds.items()
    ]
    ours = found["as it is"][-1]
    checks = [
        Check(f"last losses, all against {name}", relative_gap(ours, values[-1]), LOSS_GAP)
        for name, values in found.items()
    ]
    facts = {"diffs": diffs, "steps": steps, "rows_per_diff": learn, "tokens": work.tokens}
    return Result("ablation", lines, checks, facts | {"threads": torch.get_num_threads()}, seconds)


def _way(work: Work, name: str) -> Callable[[], list[float]]:
    def run() -> list[float]:
        with INSTEAD[name]():
            return work.ours()

    return run
