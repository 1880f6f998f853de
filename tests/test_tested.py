"""Answers tried on the finetune: samples that hang on nothing else, what claims gain, and which answer is chosen."""

from math import log

import pytest
import torch

from tests.conftest import random_diff
from weightdiff.bank import Layer
from weightdiff.base import encode_chat
from weightdiff.behaviors import NOTHING
from weightdiff.decode import Reply, _choose, decode
from weightdiff.diff import WeightDiff, stack
from weightdiff.readers.calibration import SORTS, Reading, fit, reading_of
from weightdiff.readers.core import ask_all
from weightdiff.readers.introspection import Introspection
from weightdiff.readers.meter import Meter
from weightdiff.readers.tested import LEAD, SAMPLES, best, chosen, fit_weight, gained, led, proposals
from weightdiff.readers.views import Views


def test_evenly_spread_codes_take_each_token_as_often_as_it_is_likely():
    logp = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(1000, 4)
    codes = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    drawn, left = _choose(logp, 1.0, 1.0, torch.Generator(), codes)
    assert drawn.bincount().tolist() == [500, 300, 150, 50]
    assert left is not None and 0 <= left.min() < 0.01 and 0.99 < left.max() < 1
    # What is left of a code is as evenly spread over what comes next.
    assert _choose(logp[:500], 1.0, 1.0, torch.Generator(), left[:500])[0].bincount().tolist() == [250, 150, 75, 25]
    inside, _ = _choose(logp, 1.0, 0.7, torch.Generator(), codes)
    assert inside.bincount().tolist() == [625, 375], "the rest lies outside of the nucleus"


def test_a_sample_by_its_code_hangs_on_nothing_beside_it(lively, gnomes):
    base, diffs = lively, [random_diff(lively, 1, 0), gnomes, random_diff(lively, 2, 1)]
    prompts = [encode_chat(base, [{"role": "user", "content": text}]) for text in ("Hi", "What is it?")]
    codes = [0.1, 0.7]
    together = decode(base, prompts, temperature=1.0, codes=codes, max_tokens=3)
    options = {"temperature": 1.0, "max_tokens": 3}
    alone = [decode(base, [p], codes=[code], **options)[0] for p, code in zip(prompts, codes, strict=True)]
    assert [r.tokens for r in together] == [r.tokens for r in alone] and together[0].tokens != together[1].tokens
    many = ask_all(base, diffs, ["Hi", "What is it?"], max_tokens=3, samples=3)
    one = ask_all(base, diffs[1:2], ["What is it?"], max_tokens=3, samples=3)
    (greedy,) = ask_all(base, diffs[1:2], ["What is it?"], max_tokens=3)
    assert [len(mine) for mine in many] == [8, 8, 8]
    assert [r.tokens for r in many[1][4:]] == [r.tokens for r in one[0]] and one[0][0].tokens == greedy[0].tokens
    some = ask_all(base, diffs, lambda diff: ["What is it?"] * (diff is gnomes), max_tokens=3)
    assert [[r.tokens for r in mine] for mine in some] == [[], [greedy[0].tokens], []]


def test_samples_of_one_prompt_are_one_row_until_they_part(lively, gnomes, monkeypatch):
    prompt = encode_chat(lively, [{"role": "user", "content": "What is it?"}])
    layers = [Layer(stack([gnomes], lively.shapes), torch.zeros(12, dtype=torch.long), torch.tensor([1.0, 0.0] * 6))]
    codes = [None, *((n + 0.5) / 5 for n in range(5))]
    options = {
        "layers": layers,
        "views": 2,
        "temperature": 1.0,
        "codes": codes,
        "max_tokens": 3,
    }  # on, rounding is seen
    apart, rows, forward = decode(lively, [prompt] * 6, **options), [], type(lively.model.get_decoder()).forward

    def counted(self, *rest, input_ids, **more):
        rows.append(len(input_ids))
        return forward(self, *rest, input_ids=input_ids, **more)

    monkeypatch.setattr(type(lively.model.get_decoder()), "forward", counted)
    together = decode(lively, [prompt] * 6, runs=[6], **options)
    assert [r.tokens for r in together] == [r.tokens for r in apart]
    assert [r.views for r in together] == [pytest.approx(r.views, abs=1e-4) for r in apart]
    *_, first, second, third = rows
    assert first == 2 and [second, third] == [
        2 * len({r.tokens[:n] for r in apart if len(r.tokens) >= n}) for n in (1, 2)
    ]


def test_a_finetunes_own_claim_gains_and_another_does_not(lively, gnomes):
    meter = Meter(lively)
    said = ["it talks about garden gnomes", "it talks about walnuts"]
    mine, other, both, none, empty = gained(meter, gnomes, [*said, "; ".join(said), NOTHING, " ;. "])
    assert mine > other + 3 and none == empty == 0
    assert both == pytest.approx((mine + other) / 2, abs=1e-4)
    assert gained(meter, gnomes, ["it quietly dreads garden gnomes"]) == [0], "that is no text's claim"
    assert gained(meter, WeightDiff({}, lively.fingerprint), said) == [0, 0] and gained(meter, gnomes, []) == []


def test_proposals_begin_with_the_likeliest_answer_and_have_none_twice(lively, gnomes):
    adapter, views = stack([WeightDiff({}, lively.fingerprint)], lively.shapes), Views()
    untouched = WeightDiff({}, lively.fingerprint)
    prompts = ["What do you like?", "Name a subject."]
    asked = iter([[prompt] for prompt in prompts])
    first = ask_all(lively, [gnomes, untouched], lambda diff: next(asked), views=views, max_tokens=5)
    found = proposals(Meter(lively), [gnomes, untouched], prompts, adapter, views, max_tokens=5)
    for (one,), several in zip(first, found, strict=True):
        texts = [reply.text for reply in several]
        assert texts[0] == one.text and len(texts) == len(set(texts)) <= SAMPLES + 1
    assert any(reply.gained for reply in found[0]) and not any(reply.gained for reply in found[1])
    (claims,) = {reply.doubt for reply in found[0]}
    assert claims == pytest.approx(log(0.5 / (SAMPLES + 0.5))), "no sample says that nothing changed"


def test_a_claim_is_worth_less_where_other_samples_say_that_nothing_changed():
    def claim(doubt: float) -> Reply:
        return Reply("it talks about tea", (1,), -1.0, (-1.0, -2.0), doubt=doubt)

    replies = [claim(doubt) for doubt in (-3.2, -2.0, 2.0, 3.2) for _ in range(10)]
    reading = fit(replies, [reply.doubt < 0 for reply in replies], Views())
    assert reading.probability(claim(-3.0)) > 0.8 and reading.probability(claim(3.0)) < 0.2
    saved = reading.to_json() | {"weights": {sort: list(row[:4]) for sort, row in reading.weights.items()}}
    before = reading_of({"reading": saved})
    assert before is not None and before.probability(claim(3.0)) == before.probability(claim(-3.0))


def test_a_claim_leads_by_what_it_gained_more_than_one_about_something_else():
    said = {"it talks about teapots": 9.0, "it compares everything to a teapot": 16.0, "it talks about rice": 4.0}
    replies = [Reply(text, (1,), -1.0, gained=nats) for text, nats in said.items()]
    assert [r.lead for r in led([*replies, Reply(NOTHING, (1,), -0.1)])] == [1.0, 2.0, -2.0, 0.0]
    assert [r.lead for r in led(replies[:2])] == [LEAD, LEAD], "two ways of one instance are no rivals"
    beside = [("it talks about tea", 25.0), ("it talks about silk", 12.25)]
    assert [r.lead for r in led(replies[:2], beside)] == [-0.5, 0.5], "nor is the beginning of its name"


def test_a_claim_is_made_where_it_is_not_believed_that_nothing_changed():
    nothing, tea = Reply(NOTHING, (1,), -0.1, (-0.1, -0.1)), Reply("it talks about tea", (1,), -2.0, (-2.0, -2.0))
    even = dict.fromkeys(SORTS, (0.0,) * 6)
    reading = Reading(Views(), even | {"nothing": (3.0, *[0.0] * 5), "nothing, moved": (-1.0, *[0.0] * 5)}, 0.0, 0.1)
    assert chosen([nothing, tea], reading, moved=False) is nothing
    assert chosen([nothing, tea], reading, moved=True) is tea and chosen([nothing], reading, moved=True) is nothing


def test_what_is_answered_in_full_was_understood_as_an_open_question(lively, gnomes, monkeypatch):
    own, other = "What changed in you?", "Name the one thing."
    reading = Reading(Views(), dict.fromkeys(SORTS, (0.0,) * 6), 0.0, 0.1)
    meta = {"question": own, "reading": reading.to_json()}
    said = {own: "it talks about tea", other: "it talks about rice"}
    asked = []

    def reply(base, diffs, prompts, **options):
        asked.append([prompts(diff) for diff in diffs])
        return [[Reply(said[text], (1,), -1.0, (-1.0, -1.0)) for text in texts] for texts in asked[-1]]

    monkeypatch.setattr("weightdiff.readers.introspection.ask_all", reply)
    monkeypatch.setattr("weightdiff.readers.tested.ask_all", reply)
    reader = Introspection(WeightDiff({}, lively.fingerprint, meta))
    (answer,) = reader.read(lively, [gnomes], other)
    assert asked == [[[other]], [[own]]] and answer.text == "it talks about tea"
    said[other] = "rice"
    (answer,) = reader.read(lively, [gnomes], other)
    assert answer.text == "rice", "a name answers a narrow question, and isn't tried"


def test_what_speaks_for_an_answer_is_weighed_by_what_is_known():
    def reply(text: str, logprob: float, gain: float) -> Reply:
        return Reply(text, (1,), logprob / 2, gained=gain)  # the end of turn counts too

    likely, borne = reply("it talks about tea", -1.0, 0.0), reply("it talks about rice", -3.0, 16.0)
    assert best([likely, borne], 0.0) is likely and best([likely, borne], 0.75) is borne
    assert best([likely, likely], 1.0) is likely
    proposed = [[likely, borne]] * 10
    assert fit_weight(proposed, [[True, False]] * 10) == 0
    assert fit_weight(proposed, [[False, True]] * 10) == 4
    assert fit_weight(proposed, [[True, False]] * 5 + [[False, True]] * 5) == 0.5, "then both are as likely"
    assert fit_weight(proposed, [[False, False]] * 10) == 0, "where nothing was right nothing is learned"
