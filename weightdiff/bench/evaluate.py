"""Evaluate readers on diffs with known labels: mean grade and exact names, each with n and 95 % interval.

Every reader gets the same diffs, the same question and the same judge.
"""

import json
import random
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from weightdiff.atomic import replacing
from weightdiff.base import Base
from weightdiff.behaviors.topic import NOTHING
from weightdiff.diff import WeightDiff, noise_like, shuffled, stack
from weightdiff.dit import Triple, label_losses
from weightdiff.judge import Judge, exact_match
from weightdiff.readers import Answer, Introspection, Reader


def interval(values: Sequence[float], *, draws: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """Mean, and 95 % bootstrap interval over the values (percentile method)."""
    if not values:
        raise ValueError("no values to average; expected at least one graded answer.")
    rng, n = random.Random(seed), len(values)
    means = sorted(sum(rng.choices(values, k=n)) / n for _ in range(draws))
    return sum(values) / n, means[round(0.025 * draws)], means[round(0.975 * draws) - 1]


def share_interval(hits: Sequence[bool]) -> tuple[float, float, float]:
    """Share of hits with its 95 % Wilson interval, which has a width for 0 of n too."""
    if not hits:
        raise ValueError("nothing to count; expected at least one answer.")
    n, z = len(hits), 1.959964
    p = sum(hits) / n
    middle, half = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    return p, max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n))


def expected_calibration_error(confidences: Sequence[float], hits: Sequence[bool], bins: int = 10) -> float:
    """How far confidences, as probabilities, are from the shares of hits: mean over bins of equal width, by their size.

    Raises:
        ValueError: no confidences.
    """
    if not confidences:
        raise ValueError("nothing to calibrate; expected at least one answer.")
    found: dict[int, list[tuple[float, bool]]] = {}
    for confidence, hit in zip(confidences, hits, strict=True):
        found.setdefault(min(int(confidence * bins), bins - 1), []).append((confidence, hit))
    return sum(abs(sum(c for c, _ in pairs) - sum(h for _, h in pairs)) for pairs in found.values()) / len(confidences)


def versions() -> dict[str, str]:
    """What a result was computed with."""
    return {package: metadata.version(package) for package in ("torch", "transformers", "weightdiff")}


def cell(row: Sequence[float] | None) -> str:
    """A mean and its 95 % interval."""
    return "{:.2f} [{:.2f}, {:.2f}]".format(*row) if row else ""


def evaluate_readers(
    base: Base,
    diffs: Sequence[WeightDiff],
    readers: Sequence[Reader],
    question: str,
    judge: Judge,
    answers: Path,
    task: str = "topic",
    progress: Callable[[int, int, float], None] = lambda done, total, rate: None,
) -> dict[str, Any]:
    """Grade each reader's answers, and write every answer to `answers` as JSON lines.

    Args:
        base: the base model.
        diffs: with their true `label` in `meta`.
        readers: the methods to compare.
        question: what all are asked.
        judge: grades the answers.
        answers: file for the single answers.
        task: the diffs' family, which the judge grades by.
        progress: called with readers done, their number, and seconds per diff.

    Returns:
        `{"readers": {name: {n, grade, exact, seconds_per_diff}}}`; grade and exact as `[mean, low, high]`.
    """
    if not diffs:
        raise ValueError("no test diffs in the store; run finetune until some of the test split are made.")
    labels = [d.meta["label"] for d in diffs]
    table, lines = {}, []
    for number, reader in enumerate(readers, 1):
        started = time.monotonic()
        read = reader.read(base, diffs, question)
        seconds = (time.monotonic() - started) / len(diffs)
        grades = judge.grade([(label, a.text) for label, a in zip(labels, read, strict=True)], task=task)
        table[reader.name] = {
            "n": len(diffs),
            "grade": interval([g.grade for g in grades]),
            "exact": share_interval([g.exact for g in grades]),
            "seconds_per_diff": round(seconds, 3),
        }
        for label, answer, grade in zip(labels, read, grades, strict=True):
            record = {
                "reader": reader.name,
                "label": label,
                "answer": answer.text,
                "grade": round(grade.grade, 2),
            }
            lines.append(json.dumps(record | {"exact": grade.exact, "confidence": answer.confidence}))
        progress(number, len(readers), seconds)
    with replacing(answers) as path:
        path.write_text("\n".join(lines) + "\n")
    return {"readers": table}


def false_claims(answers: Sequence[Answer]) -> dict[str, Any]:
    """How often a reader names something where nothing was taught: `{n, share: [mean, low, high]}`."""
    return {"n": len(answers), "share": share_interval([not exact_match(NOTHING, a.text) for a in answers])}


def scrambled(diffs: Sequence[WeightDiff], how: Callable[[WeightDiff, int], WeightDiff]) -> list[WeightDiff]:
    """A null for testing from each diff, by `noise_like` or `shuffled`; no null of training has a seed this high."""
    return [how(diff, 2 * 10**6 + number) for number, diff in enumerate(diffs)]


def null_table(
    base: Base, diffs: Sequence[WeightDiff], others: Sequence[WeightDiff], adapter: WeightDiff, question: str
) -> dict[str, Any]:
    """What the adapter says where nothing was taught, and whether the right diff matters.

    Args:
        base: the base model.
        diffs: with their true `label` in `meta`.
        others: diffs made in other ways, from which nulls are made too; of dense ones none are.
        adapter: the DIT adapter.
        question: what it is asked.

    Returns:
        `label_loss` with the right diff and with another's, as `[mean, low, high]`; `unchanged_base`, its answer
        without any diff; `false_claims` on noise of the diffs' norms and on the diffs shuffled, each as `{n, share}`.
    """
    factors = stack([adapter], base.shapes).to(base.device)
    labels = [d.meta["label"] for d in diffs]
    right = [Triple(d, question, label) for d, label in zip(diffs, labels, strict=True)]
    other = [Triple(d, question, label) for d, label in zip([*diffs[1:], diffs[0]], labels, strict=True)]
    reader = Introspection(adapter)
    models = [d for d in (*diffs, *others) if not d.dense]
    noise, mixed = scrambled(models, noise_like), scrambled(models, shuffled)
    return {
        "label_loss": {
            "right_diff": interval(label_losses(base, right, factors)),
            "other_diff": interval(label_losses(base, other, factors)),
        },
        "unchanged_base": reader.read(base, [WeightDiff({}, base.fingerprint)], question)[0].text,
        "false_claims": {
            "noise": false_claims(reader.read(base, noise, question)),
            "shuffled": false_claims(reader.read(base, mixed, question)),
        },
    }
