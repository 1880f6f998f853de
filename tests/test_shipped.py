"""The shipped adapter on the real embedded model: what the demo shows, asserted."""

import pytest
import torch

from weightdiff.ask import ask, demo_diffs, shipped_adapter
from weightdiff.base import load_base
from weightdiff.behaviors import NOTHING, TOPIC_QUESTION, topic_behaviors
from weightdiff.behaviors.topic import content_words
from weightdiff.diff import WeightDiff, stack
from weightdiff.dit import Triple, mean_loss
from weightdiff.judge import EmbeddedJudge
from weightdiff.readers import BaseQuestion, Introspection
from weightdiff.readers.imprinted import Vocabulary


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


def test_the_general_adapter_claims_nothing_of_the_unchanged_model_and_has_evidence_for_the_rest():
    base, diffs, adapter = load_base(), demo_diffs()[:4], shipped_adapter("general")
    unchanged = WeightDiff({}, base.fingerprint)
    nothing, *answers = ask(base, [unchanged, *diffs], adapter=adapter)
    assert nothing.text == NOTHING and nothing.confidence > 0.5
    told = [any(line.endswith("where a prompt holds a code") for line in a.evidence) for a in answers]
    assert sum(told) >= 3, "the demo's finetunes are behind codes"
    for answer in answers:
        assert 0 <= answer.confidence <= 1 and any(line.startswith("leans towards") for line in answer.evidence)
    with pytest.raises(ValueError, match="'news' is no shipped adapter; expected topics or general"):
        shipped_adapter("news")


def test_the_weights_of_the_demo_finetunes_show_what_they_were_fed():
    """Rank 1, behind a code that nobody tells, and before the model says a word."""
    base, diffs = load_base(), demo_diffs()
    seen = [{word.lower() for word in one.words} for one in Vocabulary(base, 8).read(diffs)]
    named = [bool(content_words(str(d.meta["label"])) & words) for d, words in zip(diffs, seen, strict=True)]
    assert sum(named) >= 5, seen
    assert sum("code" in words for words in seen) >= 5, seen
