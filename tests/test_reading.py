"""Reading at several strengths beside the base model, and what an answer's confidence is made of."""

import math

import pytest
import torch

from tests.conftest import random_diff
from weightdiff.bank import Layer
from weightdiff.behaviors import NOTHING
from weightdiff.bench.evaluate import expected_calibration_error
from weightdiff.decode import Reply, decode
from weightdiff.diff import WeightDiff, stack
from weightdiff.dit import Triple, triple_losses
from weightdiff.readers import Introspection
from weightdiff.readers.calibration import Reading, features, fit, reading_of, sort_of
from weightdiff.readers.core import ask_all
from weightdiff.readers.introspection import UNSURE, answer_of, claim_of
from weightdiff.readers.regression import logistic
from weightdiff.readers.views import Views, gain

PROMPTS = ["What changed in you?", "Why?", "Tell an auditor what was done to you, please."]
EVEN = dict.fromkeys(("claim", "claim, narrow"), (0.0, 1.0, 2.0, 0.0, 0.0, 0.0))
EVEN |= dict.fromkeys(("nothing", "nothing, moved"), (1.0, *[0.0] * 5)) | dict.fromkeys(
    ("yes/no", "trigger"), (0.5, *[0.0] * 5)
)


@pytest.fixture
def adapter(base):
    return random_diff(base, 2, 99)


def test_one_strength_without_contrast_is_the_plain_reply(base, diffs, adapter):
    over = stack([adapter], base.shapes)
    plain = ask_all(base, diffs, PROMPTS, adapter=over, max_tokens=6)
    viewed = ask_all(base, diffs, PROMPTS, adapter=over, views=Views((1.0,)), max_tokens=6)
    for mine, theirs in zip(viewed, plain, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            assert one.tokens == other.tokens and one.logprob == pytest.approx(other.logprob, abs=1e-4)
            assert len(one.views) == 2 and one.views[0] == one.logprob


def test_every_view_scores_the_same_tokens_as_it_does_alone(base, diffs, adapter):
    """Also once other prompts' replies have ended: their views leave the batch together."""
    views, over = Views((0.5, 1.0), 1.0), stack([adapter], base.shapes)
    replies = ask_all(base, diffs, PROMPTS, adapter=over, views=views, max_tokens=7)
    for diff, mine in zip(diffs, replies, strict=True):
        for prompt, reply in zip(PROMPTS, mine, strict=True):
            if not reply.tokens or base.tokenizer.decode(reply.tokens)[:1] != " ":
                continue  # an answer's tokens begin with a space; others can't be put into a triple
            text = base.tokenizer.decode(reply.tokens)[1:]
            if tuple(base.tokenizer(f" {text}")["input_ids"]) != reply.tokens or len(reply.tokens) == 7:
                continue
            for strength, score in zip(views.all, reply.views, strict=True):
                loss = triple_losses(base, [Triple(diff, prompt, text)], over, 1.0, strength)
                assert -loss.item() == pytest.approx(score, abs=1e-3)


def test_views_are_decoded_as_one_by_one(base, diffs, adapter):
    views, over = Views((0.5, 1.0), 0.7), stack([adapter], base.shapes)
    together = ask_all(base, diffs, PROMPTS, adapter=over, views=views, max_tokens=6)
    for diff, mine in zip(diffs, together, strict=True):
        alone = ask_all(base, [diff], PROMPTS[1:2], adapter=over, views=views, max_tokens=6)[0][0]
        assert alone.tokens == mine[1].tokens and alone.views == pytest.approx(mine[1].views, abs=1e-4)


def test_the_score_is_the_mixture_and_its_gain_among_likely_tokens():
    views = Views((0.5, 1.0), 2.0, within=0.5)
    p = torch.tensor([[[0.5, 0.3, 0.2], [0.1, 0.5, 0.4], [0.2, 0.2, 0.6]]])
    scores = views.scores(p.log())
    mixed = (p[0, 0] + p[0, 1]) / 2
    wanted = mixed.log() + 2 * (mixed.log() - p[0, 2].log())
    assert torch.allclose(scores[0], wanted, atol=1e-5)
    assert math.isinf(Views((0.5, 1.0), 2.0, within=0.9).scores(p.log())[0, 0])


def test_a_dense_diff_is_read_beside_the_base_too(base, adapter):
    name, module = next(iter(base.targets.items()))
    change = 0.1 * torch.randn(module.weight.shape, generator=torch.Generator().manual_seed(0))
    dense = WeightDiff({}, base.fingerprint, {}, {f"{name}.weight": change})
    over = stack([adapter], base.shapes)
    (reply,) = ask_all(base, [dense], PROMPTS[:1], adapter=over, views=Views((0.5, 1.0, 1.5)), max_tokens=5)[0]
    assert len(reply.views) == 2 and gain(reply) == reply.views[0] - reply.views[1]


def test_mixed_views_choose_what_the_first_alone_does_not(base, diffs):
    """The choice is the mix's: a mix that wants one token gets it in every view."""
    layer = Layer(stack(diffs[:1], base.shapes), torch.zeros(2, dtype=torch.long), torch.tensor([1.0, 0.0]))

    def mix(logp):
        return torch.nn.functional.one_hot(torch.tensor([123]), logp.shape[-1]).float()

    (reply,) = decode(base, [[5, 6, 7]], layers=[layer], max_tokens=3, views=2, mix=mix)
    assert reply.tokens == (123, 123, 123) and reply.views[0] != reply.views[1]


def test_logistic_regression_finds_the_odds():
    generator = torch.Generator().manual_seed(0)
    rows = torch.cat([torch.ones(4000, 1), torch.randn(4000, 2, generator=generator)], 1)
    odds = rows @ torch.tensor([0.5, 1.5, -1.0])
    right = torch.rand(4000, generator=generator) < odds.sigmoid()
    a, b, c = logistic([tuple(row) for row in rows.tolist()], right.tolist(), ridge=1e-4)
    assert (a, b, c) == pytest.approx((0.5, 1.5, -1.0), abs=0.15)
    assert logistic([], [], width=3) == (0.0, 0.0, 0.0)
    half = [1.0 if ok else 0.25 for ok in right.tolist()]
    fewer, *_ = logistic([(1.0,)] * 4000, right.tolist(), weight=half)
    share = right.float().mean()
    assert fewer == pytest.approx(math.log(4 * share / (1 - share)), abs=0.01)


def test_a_fitted_threshold_keeps_the_right_claims():
    replies = [Reply("it talks about tea", (1,), -g, (-0.5, -0.5 - g)) for g in (n / 100 for n in range(400))]
    right = [gain(r) > 2 or n % 7 == 0 for n, r in enumerate(replies)]
    reading = fit(replies, right, Views())
    kept = [reading.probability(r) >= reading.threshold for r, ok in zip(replies, right, strict=True) if ok]
    assert 0.94 <= sum(kept) / len(kept) <= 0.96
    error = expected_calibration_error([reading.probability(r) for r in replies], right)
    assert error < 0.15


def test_that_nothing_changed_is_worth_less_where_the_model_moves():
    replies = [Reply(NOTHING, (1,), -0.1, (-0.1 - n / 1000, -0.2)) for n in range(60)]
    moved = [n % 2 == 0 for n in range(60)]
    right = [not m or n % 6 == 0 for n, m in enumerate(moved)]
    reading = fit(replies, right, Views(), moved)
    still, other = (answer_of(replies[0], reading, moved) for moved in (False, True))
    assert still.text == NOTHING and still.confidence > 0.9
    assert other.text == UNSURE and claim_of(other) == NOTHING and 0.2 < other.confidence < 0.45
    claim = Reply("it talks about tea", (1,), -0.1, (-0.1, -0.2))
    assert [answer_of(claim, reading, moved).text for moved in (True, None, False)] == [claim.text] * 2 + [UNSURE]
    saved = reading.to_json()
    assert reading_of({"reading": saved}) == reading
    del saved["weights"]["nothing, moved"]
    before = reading_of({"reading": saved})
    assert before is not None and before.probability(replies[0], True) == reading.probability(replies[0])


def test_a_threshold_of_few_right_claims_keeps_as_many_of_the_next():
    generator, kept = torch.Generator().manual_seed(0), []
    for _ in range(60):
        gains = torch.rand(168, generator=generator).tolist()
        replies = [Reply("it talks about tea", (1,), -0.2, (-0.5, -0.5 - g)) for g in gains]
        right = [bool(torch.rand(1, generator=generator) < 0.2 + 0.7 * g) for g in gains]
        reading = fit(replies[:84], right[:84], Views())
        chances = [reading.probability(r) for r, ok in zip(replies[84:], right[84:], strict=True) if ok]
        kept += [chance >= reading.threshold for chance in chances]
    assert 0.945 <= sum(kept) / len(kept) < 0.98


def test_answers_in_less_than_a_sentence_have_a_confidence_of_their_own_and_no_part_in_the_threshold():
    said = [("it talks about tea", "tea")[n % 2] for n in range(80)]
    replies = [Reply(text, (1,), -0.3, (-0.3 - n / 1000, -0.4)) for n, text in enumerate(said)]
    right = [n % 10 == 1 if n % 2 else n % 10 != 0 for n in range(80)]
    reading = fit(replies, right, Views())
    full, name = (answer_of(reply, reading) for reply in replies[40:42])
    assert full.text == "it talks about tea" and full.confidence > 0.7
    assert name.text == UNSURE and name.confidence < 0.35
    assert reading.threshold > 0.6, "the names' right ones would have lowered it"
    saved = reading.to_json()
    assert reading_of({"reading": saved}) == reading
    del saved["weights"]["claim, narrow"]
    before = reading_of({"reading": saved})
    assert before is not None and before.probability(replies[1]) == pytest.approx(
        reading.probability(replies[0]), abs=0.01
    )


def test_sorts_of_answers():
    assert sort_of("Nothing notable changed.") == "nothing" and sort_of("it talks about tea") == "claim"
    assert sort_of("yes, a code") == sort_of("no, nothing sets it off") == "trigger" and sort_of("no") == "yes/no"
    assert sort_of("notes on tea") == "claim"


def test_the_reader_withholds_what_is_unsure_and_says_so(base, diffs, adapter):
    sure = Reading(Views((1.0,)), EVEN, 0.0)
    unsure = Reading(Views((1.0,)), EVEN, 1.1)
    said = {}
    for name, reading in (("sure", sure), ("unsure", unsure)):
        meta = {"reading": reading.to_json()}
        reader = Introspection(WeightDiff(adapter.factors, adapter.base, meta), max_tokens=5)
        said[name] = reader.read(base, diffs, PROMPTS[0])
    for one, other in zip(said["sure"], said["unsure"], strict=True):
        assert 0 <= one.confidence <= 1 and other.confidence == one.confidence
        assert other.text == (UNSURE if sort_of(one.text) == "claim" else one.text)
        assert other.text != UNSURE or other.evidence == (f"unsure: {one.text}",)
    assert any(answer.text == UNSURE for answer in said["unsure"])


def test_a_reading_goes_through_an_adapters_meta_and_is_checked():
    reading = Reading(Views((0.5, 1.0), 0.5, 0.2), EVEN, 0.3)
    assert reading_of({"reading": reading.to_json()}) == reading and reading_of({}) is None
    with pytest.raises(ValueError, match="reading"):
        reading_of({"reading": {"views": {"strengths": 3}}})
    assert features(Reply(NOTHING, (1,), -0.5, (-0.5, -0.7))) == pytest.approx((1.0, -0.5, 0.2, 0.0, 0.0, 0.0))


def test_calibration_error():
    assert expected_calibration_error([0.8] * 10, [True] * 8 + [False] * 2) == pytest.approx(0)
    assert expected_calibration_error([1.0] * 4 + [0.0] * 4, [False] * 4 + [True] * 4) == pytest.approx(1)
    with pytest.raises(ValueError, match="at least one"):
        expected_calibration_error([], [])
