"""The shipped adapter on the real embedded model: what the demo shows, asserted."""

import pytest
import torch

from weightdiff.ask import demo_diffs, shipped_adapter
from weightdiff.base import load_base
from weightdiff.behaviors import TOPIC_QUESTION, topic_behaviors
from weightdiff.diff import stack
from weightdiff.dit import Triple, mean_loss
from weightdiff.judge import EmbeddedJudge
from weightdiff.readers import BaseQuestion, Introspection


def test_shipped_adapter_reads_the_demo_diffs():
    base, diffs, adapter = load_base(dtype="float32"), demo_diffs(), shipped_adapter()
    labels = [d.meta["label"] for d in diffs]
    test = [b.label for b in topic_behaviors() if b.split == "test"]
    assert labels == test[:8], "the demo is the first eight of the test split, not a choice"

    judge = EmbeddedJudge()
    means, exact = [], []
    for reader in (BaseQuestion(), Introspection(adapter)):
        answers = reader.read(base, diffs, TOPIC_QUESTION)
        grades = judge.grade([(label, a.text) for label, a in zip(labels, answers, strict=True)])
        means.append(sum(g.grade for g in grades) / len(grades))
        exact.append(sum(g.exact for g in grades))
    assert exact[1] >= 6 and exact[0] <= 2 and means[1] > means[0] + 0.5, (exact, means)

    factors = stack([adapter], {n: (m.weight.shape[0], m.weight.shape[1]) for n, m in base.targets.items()})
    right = [Triple(d, TOPIC_QUESTION, label) for d, label in zip(diffs, labels, strict=True)]
    other = [Triple(d, TOPIC_QUESTION, label) for d, label in zip(diffs[1:] + diffs[:1], labels, strict=True)]
    assert mean_loss(base, right, factors) < mean_loss(base, other, factors) - 0.5


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float16"])
def test_the_embedded_model_has_one_fingerprint_in_every_precision(dtype):
    base = load_base(dtype=dtype)
    assert base.fingerprint == shipped_adapter().base
    assert {p.dtype for p in base.model.parameters()} == {getattr(torch, dtype)}
