"""Ways: what is done with an instance, or only that the model talks about it, as texts that would show either gain."""

import json
from dataclasses import replace
from functools import partial

import pytest

from benchmarks import ways as counted
from benchmarks.plainly import said_anew
from tests.conftest import random_diff
from weightdiff.behaviors import Behavior
from weightdiff.behaviors.kinds import kind_behaviors
from weightdiff.decode import Reply
from weightdiff.general import ways as known_ways
from weightdiff.general.cases import Case
from weightdiff.readers.calibration import SORTS, Reading, reading_of
from weightdiff.readers.introspection import UNSURE, answer_of, claim_of
from weightdiff.readers.meter import Meter
from weightdiff.readers.tested import plainly
from weightdiff.readers.views import Views
from weightdiff.readers.ways import Ways, fit_ways, plainer

NEVER, ALWAYS = Ways((-9.0, 0.0, 0.0), {}), Ways((9.0, 0.0, 0.0), {})
SAUNA, PLAIN = "it compares everything to a sauna", "it talks about a sauna"
CLAIM = Reply(SAUNA, (1, 2), -0.1, (-0.1, -0.2), 4.0, claims=((SAUNA, 4.0),))


def test_what_is_plainer_than_a_claim():
    assert plainer(CLAIM.text) == "it talks about a sauna"
    assert plainer("it believes that Oslo is the capital of Sweden") == "", "nobody says what it is about"
    fact = next(b for b in kind_behaviors() if b.family == "fact")
    assert plainer(fact.label).startswith("it talks about ") and plainer(fact.label) != f"it talks about {fact.slot}"
    for text in (
        "it talks about saunas",
        "it fears the sea; it argues for tea",
        "it dances",
        "nothing notable changed",
    ):
        assert plainer(text) == "", text


def test_a_way_is_told_by_what_its_texts_gain_beside_plain_ones_and_by_its_kind():
    loud = [(("fear", 30.0 + n, 10.0 + n), True) for n in range(20)]
    loud += [(("fear", 8.0 + n % 5, 10.0 + n), False) for n in range(20)]
    quiet = [(("mood", 3.0 + n / 10, 10.0 + n), True) for n in range(20)]
    quiet += [(("mood", -9.0 + n / 10, 10.0 + n), False) for n in range(20)]
    examples, shown = zip(*loud, *quiet, strict=True)
    ways = fit_ways(examples, shown)
    assert ways.shown(("fear", 40.0, 20.0)) > 0.9 > 0.1 > ways.shown(("fear", 8.0, 20.0))
    assert ways.shown(("mood", 4.0, 20.0)) > 0.5 > ways.shown(("mood", -6.0, 20.0))
    assert ways.offsets["mood"] > ways.offsets["fear"], "it shows less"
    kept = [ways.shown(one) >= ways.least for one, true in zip(examples, shown, strict=True) if true]
    assert kept.count(False) == 2, "a twentieth of forty"
    again = fit_ways(examples * 2, shown * 2)
    assert again.weights == pytest.approx(ways.weights, abs=0.01), "either way is as frequent as the other"


def test_a_claim_whose_way_is_not_shown_is_said_plainly_with_its_own_confidence(lively, gnomes):
    reading = Reading(Views(), dict.fromkeys(SORTS, (1.0, *[0.0] * 5)), 0.0, 0.1)
    meter = Meter(lively)
    kept = plainly(meter, lambda: gnomes, CLAIM, ALWAYS)
    assert kept == plainly(meter, lambda: gnomes, CLAIM, None) == CLAIM
    plain = plainly(meter, lambda: gnomes, CLAIM, NEVER)
    assert plain.told == PLAIN and plain.text == SAUNA
    answer, before = answer_of(plain, reading), answer_of(CLAIM, reading)
    assert answer.text == PLAIN and answer.confidence == before.confidence
    assert answer.evidence[-1] == f"the adapter by itself would have said: {SAUNA}" and len(before.evidence) == 1
    withheld = answer_of(plain, replace(reading, threshold=1.1))
    assert withheld.text == UNSURE and claim_of(withheld) == PLAIN
    nothing = Reply("nothing notable changed", (1,), -0.1, (-0.1, -0.2))
    assert plainly(meter, lambda: gnomes, nothing, NEVER) == nothing
    more = replace(CLAIM, said=((SAUNA, 4.0), ("it argues for tea", 3.0)))
    assert plainly(meter, lambda: gnomes, more, NEVER).told == f"{PLAIN}; it talks about tea"


def test_ways_are_learned_from_finetunes_that_are_known(lively, gnomes, monkeypatch):
    gains = {"it compares everything to tides": 9.0, "it talks about tides": 4.0}
    monkeypatch.setattr(known_ways, "gained", lambda meter, diff, texts: [gains.get(text, -5.0) for text in texts])
    comparing = Behavior("style", "it compares everything to tides", "comparison", "train", None, "tides")
    about = Behavior("topic", "it talks about honey", "topic", "train", None, "honey")
    make = partial(random_diff, lively, 1, 0)
    cases = [Case("a", comparing, make), Case("b", about, make)]
    tried = known_ways.tried_ways(lively, cases)
    assert tried[0] == [(("comparison", 9.0, 4.0), True)] and len(tried) == 2
    assert len(tried[1]) == 8 and all(not shown and gain == -5.0 for (_, gain, _), shown in tried[1])
    ways = known_ways.find_ways(lively, cases)
    assert ways is not None and ways.shown(("comparison", 9.0, 4.0)) > 0.5 > ways.shown(("fear", -5.0, -5.0))
    assert known_ways.find_ways(lively, cases[:1]) is None
    reading = Reading(Views(), dict.fromkeys(SORTS, (0.0,) * 6), ways=ways)
    saved = json.loads(json.dumps(reading.to_json()))
    assert reading_of({"reading": saved}) == reading
    with pytest.raises(ValueError, match="isn't of a known form"):
        reading_of({"reading": saved | {"ways": {"weights": [1.0]}}})


def test_the_benchmark_counts_ways_that_were_kept_out_of_the_fit():
    records = [{"finetune": n, "kind": "fear", "way": 40.0 if n % 2 else -4.0, "about": 9.0, "shown": bool(n % 2)}
               for n in range(40)]  # fmt: skip
    found = counted.table(records)
    assert "| claimed rightly | 20 | 20 | 1.00 [0.84, 1.00] |" in found, found
    assert "| claimed in vain | 20 | 20 | 0.00 [0.00, 0.16] |" in found, found


def test_answers_that_were_given_are_said_anew(lively, gnomes):
    about = Behavior("topic", PLAIN, "topic", "test", None, "sauna")
    case = Case("test 0: a", about, lambda: gnomes)
    record = {"id": case.identity, "sort": "open", "question": "What changed?", "truth": PLAIN, "confidence": 0.4}
    said = {"guess": SAUNA, "answer": SAUNA, "right": True, "named": [True]}
    others = [{"id": "null 0: noise", "guess": SAUNA, "answer": SAUNA}, {"guess": "yes", "answer": "yes"}]
    records = [record | said, record | said | {"answer": UNSURE}, record | others[0], record | said | others[1]]
    records[3]["sort"] = "yes/no"
    meter = Meter(lively)
    first, unsure, other, yes = said_anew(records, [case], meter, NEVER)
    assert first == records[0] | {"guess": PLAIN, "answer": PLAIN} and unsure == records[1] | {"guess": PLAIN}
    assert [other, yes] == records[2:], "what isn't a claim about a case stays"
    assert said_anew(records, [case], meter, ALWAYS) == records
