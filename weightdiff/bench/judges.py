"""How far two judges agree on the same answers, or one judge with itself; knows nothing of who gave the answers."""

import math
import random
from collections.abc import Sequence
from typing import Any

from weightdiff.bench.evaluate import interval, share_interval
from weightdiff.judge import Judge, exact_match
from weightdiff.llm_judge import LLMJudge


def agreement(judge_a: Judge, judge_b: Judge, pairs: Sequence[tuple[str, str]], task: str) -> dict[str, Any]:
    """Grade each pair by both judges and compare.

    The intervals take pairs for independent; where many answers share a truth, they are too narrow.

    Args:
        judge_a: one judge.
        judge_b: the other. The same object: it is asked twice, an LLM judge the second time with another seed, so
            that no cache repeats its replies.
        pairs: (truth, answer) each.
        task: `topic` or `news`.

    Returns:
        `judges`, both names; `n` pairs that both graded, and `ungraded`, the others; `exact`, how many of the n are
        exact matches, which judges don't differ on; and, each as [figure, low, high] with a 95 % interval,
        `pearson` (None where a judge gives all the same grade), `mae`, the mean absolute difference, `equal`, the
        share of equal rounded grades, and `bias`, the mean of a's grade less b's.

    Raises:
        ValueError: no pair that both graded, or what a judge raises.
    """
    if judge_b is judge_a and isinstance(judge_a, LLMJudge):
        judge_b = judge_a.again()
    graded = [
        (a.grade, b.grade, exact_match(*pair))
        for pair, a, b in zip(pairs, judge_a.grade(pairs, task=task), judge_b.grade(pairs, task=task), strict=True)
        if math.isfinite(a.grade) and math.isfinite(b.grade)
    ]
    if not graded:
        raise ValueError(
            f"of {len(pairs)} answers none was graded by both {judge_a.name!r} and {judge_b.name!r}; expected one at "
            "least. Give answers, or a judge whose replies can be read."
        )
    both = [(a, b) for a, b, _ in graded]
    return {
        "judges": [judge_a.name, judge_b.name],
        "n": len(both),
        "ungraded": len(pairs) - len(both),
        "exact": sum(exact for _, _, exact in graded),
        "pearson": _pearson_interval(both),
        "mae": interval([abs(a - b) for a, b in both]),
        "equal": share_interval([math.floor(a + 0.5) == math.floor(b + 0.5) for a, b in both]),
        "bias": interval([a - b for a, b in both]),
    }


def _pearson_interval(
    both: Sequence[tuple[float, float]], *, draws: int = 2000, seed: int = 0
) -> tuple[float, float, float] | None:
    """Pearson's r with its 95 % bootstrap interval over pairs; draws in which it isn't defined are left out."""
    point = _pearson(both)
    if point is None:
        return None
    rng, n = random.Random(seed), len(both)
    drawn = sorted(r for _ in range(draws) if (r := _pearson(rng.choices(both, k=n))) is not None)
    return point, drawn[round(0.025 * len(drawn))], drawn[max(0, round(0.975 * len(drawn)) - 1)]


def _pearson(both: Sequence[tuple[float, float]]) -> float | None:
    a, b = (list(grades) for grades in zip(*both, strict=True))
    if min(a) == max(a) or min(b) == max(b):
        return None
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    product = sum((x - mean_a) * (y - mean_b) for x, y in both)
    return product / math.sqrt(sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b))
