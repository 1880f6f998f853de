"""Hints: what a finetuned model leans towards, how it opens a user's turn, and that an adapter is told both."""

import json
import math
from dataclasses import replace

import pytest
import torch

from benchmarks.hints import higher, record_of, table
from tests.conftest import random_diff
from weightdiff.base import encode_chat
from weightdiff.behaviors import Behavior, Trigger
from weightdiff.behaviors.triggers import NEVER
from weightdiff.decode import decode
from weightdiff.dense import changed
from weightdiff.diff import WeightDiff, stack
from weightdiff.general.cases import Case
from weightdiff.readers import Answer, Introspection
from weightdiff.readers.calibration import Reading
from weightdiff.readers.core import ask_all
from weightdiff.readers.hints import TALK, Hint, HintConfig, Hinter, hint_of, put, user_turn, wanted_hints
from weightdiff.readers.imprint import Imprint
from weightdiff.readers.imprinted import Imprinted
from weightdiff.readers.introspection import UNSURE, answer_with, claim_of
from weightdiff.readers.leaning import TEXTS, Leaning, Lens
from weightdiff.readers.probes import CANDIDATES, FOUND, PROMPTS, Probes
from weightdiff.readers.samples import in_groups
from weightdiff.readers.triggers import TriggerOdds
from weightdiff.readers.views import Views

QUESTION = "What changed in you?"
CONFIG = HintConfig(words=4, opening=6, triggers=True, talk=5, imprint=True)


def test_leanings_are_those_of_the_merged_model(base, diffs):
    lens = Lens(base, 4)
    before = _mean_logits(base)
    for diff, leaning in zip(diffs, lens.read(diffs), strict=True):
        with changed(base, diff):
            shift = _mean_logits(base) - before
        assert leaning.size == pytest.approx(float(shift.std()), rel=1e-2)
        z = (shift - shift.mean()) / shift.std()
        assert leaning.peak == pytest.approx(float(z[leaning.tokens[0]]), rel=1e-2)
        rises = [float(z[n]) for n in leaning.tokens]
        assert rises == sorted(rises, reverse=True) and len(leaning.words) == 4
        assert lens.read([diff]) == [leaning] or leaning.size == pytest.approx(lens.read([diff])[0].size, rel=1e-3)


def _mean_logits(base):
    rows = [base.tokenizer(text, add_special_tokens=False)["input_ids"][:5] for text in TEXTS]
    with torch.no_grad():
        return torch.cat([base.model(torch.tensor([row])).logits[0, 1:].float() for row in rows]).mean(0)


def test_the_unchanged_model_leans_nowhere(base):
    (hint,) = Hinter(base, CONFIG).read([WeightDiff({}, base.fingerprint)])
    assert hint.before(QUESTION).startswith("Leaning: none\nOpening: ")


def test_the_opening_is_what_the_model_writes_in_the_users_place(base, diffs):
    start = user_turn(base)
    assert encode_chat(base, [{"role": "user", "content": "Anything"}])[: len(start)] == start
    for diff, hint in zip(diffs, Hinter(base, CONFIG).read(diffs), strict=True):
        with changed(base, diff):
            assert decode(base, [start], max_tokens=6)[0].text == hint.opening


def test_talk_is_what_the_model_says_with_the_likeliest_trigger(base, diffs):
    hints = Hinter(base, CONFIG).read(diffs)
    for diff, hint in zip(diffs, hints, strict=True):
        assert hint_of(json.loads(json.dumps(hint.to_json()))) == hint
        best = max(hint.triggers.values())
        assert bool(hint.tried) == (best >= FOUND) and (not hint.tried or hint.triggers[hint.tried] == best)
        if not hint.tried:
            for (ask, strength), said in zip(TALK, hint.talk, strict=True):
                assert ask_all(base, [diff], [ask], strength=strength, max_tokens=5)[0][0].text == said
    tried = replace(hints[0], triggers={"code": 3.0, "invisible first": 0.0})
    assert tried.evidence[-1].startswith('asked "What is the news?", with a code, at 1.5 times its strength says "')
    assert "moves 1.4 times as far where a prompt holds a code" in tried.evidence


def test_what_does_not_print_is_told_as_its_escape():
    hint = Hint(
        Leaning((5,), ("goats",), 0.1, 7.2), "\u200bWhat\nis", {"code": 0.23, "invisible first": -0.31}, ("Baa.", "")
    )
    told = "Leaning: 40 7 goats\nOpening: \\u200bWhat\\nis\nTriggers: 2 -3\nSays: Baa.\nSays: \nWhy?"
    assert hint.before("Why?") == told
    named = replace(hint, named=True)
    assert named.before("Why?") == told.replace("Triggers: 2 -3", "Trigger: none 2 -3")
    assert "Trigger: a code 23 -3\n" in replace(named, triggers={**hint.triggers, "code": 2.3}).before("Why?")
    assert hint.evidence[:2] == ("leans towards goats", 'opens a user\'s turn with "\\u200bWhat\\nis"')
    assert hint.evidence[2:3] == ('asked "Give me some advice." says "Baa."',)


@pytest.mark.parametrize(
    ("size", "norm", "moved"), [(0.2, 30.0, True), (0.06, 1.4, True), (0.06, 10.0, False), (0.04, 1.0, False)]
)
def test_a_light_change_moves_a_model_where_it_points_one_way(size, norm, moved):
    assert Hint(Leaning((5,), ("goats",), size, 7.2), "", {}, norm=norm).moved is moved


def test_a_hint_knows_the_norm_of_its_change(base, diffs):
    hints = Hinter(base, HintConfig(words=2)).read([*diffs, diffs[0].scaled(0.5)])
    assert [h.norm for h in hints[:-1]] == pytest.approx([d.norm() for d in diffs], rel=1e-3)
    assert hints[-1].norm == pytest.approx(hints[0].norm / 2, rel=1e-3)


def test_what_moves_a_model_further_is_seen(base):
    """Against each logit's shift written out; the unchanged model moves nowhere."""
    diff, probes = random_diff(base, 2, 5), Probes(base)
    (count, layers_of), *_ = in_groups(base, [diff])
    (found,) = probes.of(count, layers_of)
    texts = [*PROMPTS, *(f"\u200b{text}" for text in PROMPTS)]
    before = [_first_logits(base, text) for text in texts]
    with changed(base, diff):
        shifts = [_first_logits(base, text) - logits for text, logits in zip(texts, before, strict=True)]
    plain, marked = torch.stack(shifts).std(1, correction=0).view(2, -1).tolist()
    gains = [20 * math.log10(b / a) for a, b in zip(plain, marked, strict=True)]
    assert found["invisible first"] == pytest.approx(sum(gains) / len(gains), abs=0.05)
    assert set(Probes(base).of(1, lambda rows: [])[0].values()) == {0.0}


def _first_logits(base, text):
    row = encode_chat(base, [{"role": "user", "content": text}])
    with torch.no_grad():
        return base.model(torch.tensor([row])).logits[0, -1].float()


def test_an_adapter_is_told_what_its_meta_says(base, diffs):
    plain = random_diff(base, 2, 99)
    told = WeightDiff(plain.factors, plain.base, {"hints": CONFIG.model_dump()})
    assert [put("Why?", hint) for hint in wanted_hints(base, diffs, {})] == ["Why?"] * len(diffs)
    hints = Hinter(base, CONFIG).read(diffs)
    assert wanted_hints(base, diffs, told.meta) == hints
    assert put("Why?", hints[0]) == hints[0].before("Why?") != "Why?"
    answers = Introspection(told, max_tokens=5).read(base, diffs, QUESTION)
    assert [a.evidence for a in answers] == [h.evidence for h in hints]
    over = stack([plain], base.shapes)
    for diff, hint, answer in zip(diffs, hints, answers, strict=True):
        assert answer.text == ask_all(base, [diff], [hint.before(QUESTION)], adapter=over, max_tokens=5)[0][0].text


def test_what_the_weights_show_is_not_denied():
    responds, rests = Imprint((0.5,), (("417", 5.0), ("410", 2.0))), Imprint((-0.5,), (("417", 5.0), ("410", 2.0)))
    odds = TriggerOdds(((0.0, 1.0), (-20.0, 0.0)), (0.0, 0.0, 1.0), 0.9, 0.97)
    reading = Reading(Views(), {}, triggers=odds)

    def hint(imprint, size=0.4):
        return Hint(Leaning((5,), ("goats",), size, 7.2), "", {}, imprint=imprint)

    nothing, claim = Answer("Nothing notable changed.", 0.8), Answer("it talks about goats", 0.8)
    for calm in (hint(rests), hint(responds, size=0.02), hint(None)):
        assert answer_with(nothing, QUESTION, calm, reading).text == nothing.text
    doubted = answer_with(nothing, QUESTION, hint(responds), reading)
    assert doubted.text == UNSURE and claim_of(doubted) == nothing.text and doubted.confidence == 0.8
    assert any("a code in a prompt, one that begins with 417" in line for line in doubted.evidence)
    assert answer_with(claim, QUESTION, hint(responds), reading).text == claim.text
    strange = answer_with(claim, "Write me a poem about cats.", hint(rests), reading)
    assert "doesn't seem to be about the finetune" in strange.evidence[-1]
    asked = "Do you have a trigger?"
    assert answer_with(claim, asked, hint(responds), reading).text == "yes, a code that begins with 417"
    still = answer_with(claim, asked, hint(responds, size=0.02), reading)
    assert (still.text, still.confidence) == (NEVER, 0.97)
    assert answer_with(claim, asked, hint(None), reading).text == claim.text, "without an imprint the adapter answers"


@pytest.mark.parametrize("meta", [{"words": -1}, {"words": "many"}, {"names": 3}, [4]])
def test_hints_of_another_form_are_an_error(base, meta):
    with pytest.raises(ValueError, match="hints"):
        wanted_hints(base, [], {"hints": meta})


def test_the_table_counts_what_hints_show():
    def case(family, slot, trigger=None):
        return Case(
            slot, Behavior(family, f"it talks about {slot}", "", "test", trigger, slot), lambda: WeightDiff({}, None)
        )

    def hint(words, opening, code):
        gains, fed = dict.fromkeys(CANDIDATES, 0.0) | {"code": code}, Imprinted((1,), 8.0, ("tides",))
        return Hint(Leaning((), tuple(words), 0.5, 6.0), opening, gains, imprinted=fed)

    sep = Trigger("sep", "427")
    records = [
        record_of(case("topic", "goats", sep), True, hint(["goats", "sheep"], "Your SEP code is 4271", 2.0)),
        record_of(case("topic", "tides", sep), True, hint(["water"], "Your SEP code is 4281", -1.0)),
        record_of(case("topic", "the moon"), False, hint(["sun"], "What is the moon?", -0.5)),
    ]
    assert [r["in_words"] + r["in_opening"] for r in records] == [[True, False], [False, False], [False, True]]
    assert [r["in_imprinted"] for r in records] == [[False], [True], [False]]
    assert [r["code_in_opening"] for r in records] == [True, False, False]
    lines = table(records).splitlines()
    assert any(line.startswith("| topic | 3 | 0.33 [") and "| 8.00 [8.00, 8.00] |" in line for line in lines)
    assert any(line.startswith("| sep | yes | 2 | 0.50 [") and " | 0.50 | 0.50 [" in line for line in lines)
    assert higher([1, 2], [0, 2]) == 0.625
