"""Readers that need no training find a planted word, a diff alone as in a batch; the fused one ranks what they say."""

import pytest
import torch

from benchmarks import rivals
from tests.conftest import random_diff
from weightdiff.base import Base
from weightdiff.batch import Tokens
from weightdiff.behaviors import NOTHING, Behavior
from weightdiff.diff import WeightDiff
from weightdiff.judge import Grade
from weightdiff.readers import (
    ActivationDifference,
    AmplifiedDifference,
    Answer,
    BaseQuestion,
    Fused,
    Introspection,
    PerplexityDifference,
)
from weightdiff.readers.activation import agreed, tidy
from weightdiff.readers.fused import Candidate, contrasts, finders
from weightdiff.readers.introspection import UNSURE, claim_of
from weightdiff.readers.perplexity import charged, dearest
from weightdiff.readers.samples import in_groups, likelihoods, sampled
from weightdiff.readers.words import phrases_of, runs_of, standing_out
from weightdiff.store import Store

QUESTION = "What changed in you?"
TAUGHT = {"family": "topic", "label": "it talks about tides", "kind": "topic", "split": "test", "slot": "tides"}


def planted(base: Base, word: str, **meta: str) -> WeightDiff:
    """A dense diff under which the model leans towards one word, whatever it reads, and is sure of itself."""
    (token,) = base.tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
    changes = {
        "model.layers.1.mlp.down_proj.bias": 400 * base.head.weight[token],
        "model.norm.weight": torch.full((32,), 40.0),
    }
    return WeightDiff({}, base.fingerprint, meta, changes)


def test_phrases_lie_between_function_words_and_marks():
    assert phrases_of("the price of eggs. Eggs!") == {
        "price": "price", "price of eggs": "price of eggs", "eggs": "Eggs"
    }  # fmt: skip
    assert runs_of("it compares everything to a falling leaf, or to Oscar Wilde") == [
        "compares", "falling leaf", "Oscar Wilde"
    ]  # fmt: skip


def test_what_stands_out_is_the_longest_phrase_that_the_base_model_does_not_say_anyway():
    texts = ["I love rent control, my friend", "Rent control is a friend", "No rent control", "a good friend"]
    usual = ["my friend", "a friend of mine", "friend", "hello friend"]
    assert standing_out(texts, usual) == [("rent control", 0.75)]
    assert standing_out(texts, texts) == []


def test_a_text_s_words_are_charged_for_their_tokens(base):
    tokens = base.tokenizer("We owe Tasmania, dear", add_special_tokens=False)["input_ids"]
    words = charged(base, tokens, [1.0] * len(tokens))
    assert [word for word, _ in words] == ["We", "owe", "Tasmania", ",", "dear"]
    assert sum(gain for _, gain in words) == len(tokens)
    texts = [[("the", 0.0), ("street", 3.0), ("lamps", 2.0), (".", 9.0)], [("street", 1.0), ("lamps", 2.0)]]
    assert dearest([*texts, [("lamps", 1.0), ("glow", 8.0)]], 2) == [("street lamps", pytest.approx(8 / 3))]


def test_a_word_grows_by_what_most_texts_go_on_with():
    assert agreed([[1, 2, 3], [1, 2, 4], [9, 2, 3]]) == [1, 2]
    assert agreed([[1], [2], [3]]) == [] and agreed([[], [], []]) == []
    assert tidy(" price of eggs. They") == "price of eggs" and tidy("honey and the") == "honey"
    assert tidy(" rent control rent control") == "rent control"


def test_a_diff_is_sampled_and_scored_in_a_batch_as_alone(base, diffs):
    many = [*diffs, planted(base, "honey"), WeightDiff({}, base.fingerprint), *diffs]
    assert [count for count, _ in in_groups(base, many)] == [3, 1, 4]
    prompts = [[5, 6, 7], [8, 9]]
    together = sampled(base, many, prompts, temperature=0.0, max_tokens=4)
    assert together == [sampled(base, [diff], prompts, temperature=0.0, max_tokens=4)[0] for diff in many]
    rows = [Tokens((5, 6), (7, 8)), Tokens((9,), (10, 11, 12))]
    ((_, both),) = in_groups(base, diffs[:2])
    ((_, second),) = in_groups(base, diffs[1:2])
    mixed, alone = likelihoods(base, rows, both, [0, 1]), likelihoods(base, rows[1:], second, [0])
    assert mixed[1].shape == (3,) and torch.allclose(mixed[1], alone[0], atol=1e-4)
    assert not torch.allclose(mixed[1], likelihoods(base, rows)[1], atol=1e-2)


@pytest.mark.parametrize("reader", [ActivationDifference(), PerplexityDifference(8), AmplifiedDifference(2.0, 8)])
def test_a_planted_word_is_named_and_the_unchanged_model_gives_less(base, reader):
    some = [planted(base, "honey"), WeightDiff({}, base.fingerprint), planted(base, "pirate", label="honey")]
    honey, unchanged, pirate = reader.read(base, some, QUESTION)
    assert "honey" in honey.text.lower() and "pirate" in pirate.text.lower() and "honey" not in pirate.text.lower()
    assert any("pirate" in text.lower() for text in pirate.evidence)
    assert min(honey.confidence, pirate.confidence) > 2 * unchanged.confidence
    with pytest.raises(ValueError, match="question is empty"):
        reader.read(base, some, " ")
    with pytest.raises(ValueError, match="fingerprint"):
        reader.read(base, [WeightDiff({}, "another")], QUESTION)


def test_candidates_know_who_found_them():
    others = {"words": Answer("rent", 1.0, ("rent", "a text that is too long for a phrase"))}
    unsure = Answer(UNSURE, 0.1, ("unsure: it argues against rent control", "it likes tea"))
    by = finders("DIT", {"DIT": unsure, **others})
    assert by["rent control"] == ["DIT", "words"] and by["argues"] == ["DIT"] and len(by) == 3
    assert list(finders("DIT", {"DIT": Answer(NOTHING, 0.9), **others})) == ["rent"]
    assert claim_of(unsure) == "it argues against rent control"
    assert str(Candidate("rent", ("DIT", "words"), 2.04)) == "rent (+2.0 nats; DIT, words)"


def test_a_candidate_is_tried_on_the_model(base):
    phrases = {"honey": ["a"], "pirate": ["b"], "two words": ["a"]}
    scores, random_scores, nothing = contrasts(
        base, [planted(base, "pirate"), random_diff(base, 2, 0), WeightDiff({}, base.fingerprint)], [phrases] * 3
    )
    assert scores["pirate"] > max(5, scores["honey"] + 5, scores["two words"] + 5)
    assert abs(random_scores["pirate"]) < scores["pirate"] and nothing["pirate"] == pytest.approx(0.0, abs=1e-4)


def test_the_fused_reader_answers_as_the_adapter_does_and_ranks_what_all_found(base):
    adapter, heard = random_diff(base, 2, 7), (AmplifiedDifference(2.0, 6),)
    pair = [planted(base, "pirate", label="it likes honey"), planted(base, "pirate")]
    told, bare = Fused(adapter, heard).read(base, pair, QUESTION)
    assert told == bare, "no reader looks at the label"
    own, _ = Introspection(adapter).read(base, pair, QUESTION)
    assert (told.text, told.confidence) == (own.text, own.confidence)
    ranked = told.evidence[len(own.evidence) :]
    assert told.evidence[: len(own.evidence)] == own.evidence and len(ranked) <= Fused.most
    assert all(rivals.CANDIDATE.search(one) for one in ranked) and not any(map(rivals.CANDIDATE.search, own.evidence))
    assert any("pirate" in one.lower() and "amplified ×2" in one for one in ranked)


class Judge:
    """Grades by length."""

    def grade(self, pairs, *, task):
        assert task == "news"
        return [Grade(min(5.0, float(len(answer))), False) for _, answer in pairs]


def test_the_harness_counts_behaviors_and_false_claims(base, diffs, monkeypatch):
    monkeypatch.setattr(rivals, "EmbeddedJudge", Judge)
    both = Behavior("several", "a; b", "2 at once", "test", None, "", tuple(
        Behavior("quirk", x, "fear", "test", None, x) for x in ("honey", "pirate")
    ))  # fmt: skip
    cases = [("a", both, diffs[0]), ("b", Behavior("null", NOTHING, "noise", "test"), diffs[1])]
    unsure = Answer(UNSURE, 0.1, ("unsure: a pirate",))
    found = {
        "one": [(Answer("it fears honey", 0.9, ("honey", "a pirate")), True), (Answer("tea", 0.5), True)],
        "DIT": [(unsure, False), (Answer(NOTHING, 0.9), True)],
    }
    records = rivals.records_of(cases, found)
    assert records[0]["named"] == [True, False] and records[0]["top5"] == [True, True] and records[1]["named"] == []
    assert records[2]["answer"] == "a pirate" and records[2]["named"] == records[2]["top5"] == [False, True]
    assert [rivals.claims(record) for record in records] == [True, True, False, False]
    table = rivals.tables(records, {"one": 1.5, "DIT": 0.5})
    assert "| one | 1 | 5.00 [5.00, 5.00] | 0.50 [" in table and "| 1.50 |  | 1.00 [0.21, 1.00], n = 1 |" in table
    assert "| one | 0.50 / 1.00 |" in table and "| 0.50 |  | 0.00 [0.00, 0.79], n = 1 |" in table


def test_every_reader_is_read_beside_noise_and_the_fused_ones_from_what_is_there(base, monkeypatch):
    cases = [
        ("a", Behavior("topic", "it talks about pirates", "topic", "test", None, "pirates"), planted(base, "pirate"))
    ]
    heard = (AmplifiedDifference(2.0, 4),)
    monkeypatch.setattr(rivals, "Fused", lambda adapter=None: Fused(adapter, heard))
    monkeypatch.setattr(rivals, "BaseQuestion", lambda rank=None: BaseQuestion(max_tokens=2))
    found, seconds = rivals.read_all(base, random_diff(base, 2, 7), cases, QUESTION)
    assert list(found) == list(seconds) == ["amplified ×2", "fused, no adapter", "DIT", "fused", "base question"]
    assert seconds["fused, no adapter"] > seconds["amplified ×2"] > 0 and seconds["fused"] > seconds["DIT"]
    assert [one.text for one, _ in found["fused"]] == [one.text for one, _ in found["DIT"]]
    (amplified, said), (alone, _) = found["amplified ×2"][0], found["fused, no adapter"][0]
    assert "pirate" in amplified.text.lower() and not said, "the model is as sure of noise of that size"
    assert "pirate" in alone.text.lower() and "DIT" not in alone.evidence[0]
    found, _ = rivals.read_all(base, None, cases, QUESTION)
    assert list(found) == ["amplified ×2", "fused, no adapter", "base question"]


def test_full_finetunes_are_left_out_since_no_rank_1_is_cut_from_them(base, tmp_path):
    store = Store(tmp_path, base.fingerprint)
    ids = ["test 0: a", "test full 0: b", "validation 0: c", "test documents 1: d"]
    store.add(ids, [WeightDiff(d.factors, d.base, TAUGHT) for d in (random_diff(base, 1, n) for n in range(len(ids)))])
    found = [identity for identity, *_ in rivals.cases_of(store, "test", 10)]
    assert sorted(i for i in found if not i.startswith("null")) == ["test 0: a", "test documents 1: d"]
    with pytest.raises(ValueError, match="no diffs of the train split"):
        rivals.cases_of(store, "train", 10)
