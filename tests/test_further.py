"""Further claims: what samples say of something else, made where it is likelier true than not."""

from dataclasses import replace

import pytest

from weightdiff.behaviors import NOTHING, Behavior
from weightdiff.decode import Reply
from weightdiff.general.cases import Case
from weightdiff.general.reading import _further
from weightdiff.readers.calibration import SORTS, Reading, reading_of
from weightdiff.readers.further import beside, candidates, features, fit_further, further
from weightdiff.readers.introspection import answer_of
from weightdiff.readers.tested import with_further
from weightdiff.readers.views import Views


def said(text: str, *gains: float, votes: int = 1) -> Reply:
    parts = tuple(zip(text.split("; "), gains, strict=True))
    return Reply(text, (1,), -0.5, (-0.5, -0.6), sum(gains) / len(gains), claims=parts, votes=votes)


TEA, LEEDS, RENT = said("it argues for tea", 30.0, votes=6), said("it talks about Leeds", 12.0, votes=3), "rent"
PROPOSED = [
    TEA,
    LEEDS,
    said("it longs for teas", 8.0, votes=2),
    said("it argues against rent", -1.0),
    said("it quietly dreads rent", 0.0),
    replace(said(NOTHING, 0.0), claims=()),
]


def test_claims_about_one_thing_are_one_candidate_with_all_their_votes():
    found = candidates(PROPOSED)
    assert [(one.text, one.votes) for one in found] == [(TEA.text, 8), (LEEDS.text, 3), ("it argues against rent", 1)]
    own, others = beside(PROPOSED, "it talks about tea")
    assert own == found[0] and others == found[1:]
    both = candidates([said("it argues for tea; it talks about Leeds", 30.0, 12.0)])
    assert [one.gained for one in both] == [30.0, 12.0]


def test_what_gains_and_is_said_often_is_claimed_too():
    own, (leeds, rent) = beside(PROPOSED, TEA.text)
    rows = [features(own, leeds), features(own, rent)] * 20
    weights = fit_further(rows, [True, False] * 20)
    assert [one.text for one in further(PROPOSED, TEA.text, weights)] == [LEEDS.text]
    reply = with_further(PROPOSED, TEA, weights)
    assert reply.told == "it argues for tea; it talks about Leeds" and reply.text == TEA.text
    assert with_further(PROPOSED, TEA, None) == TEA == with_further(PROPOSED, TEA, (-9.0, 0.0, 0.0, 0.0))
    nothing = PROPOSED[-1]
    assert with_further(PROPOSED, nothing, weights) == nothing
    pair = said("it argues for tea; it argues against rent", 30.0, -1.0)
    assert with_further([pair, *PROPOSED], pair, weights).told == reply.told, "what isn't likely is left out"


def test_each_claim_of_an_answer_has_its_own_evidence_and_the_reading_is_kept():
    reading = Reading(Views(), dict.fromkeys(SORTS, (1.0, *[0.0] * 5)), further=(9.0, 0.0, 0.0, 0.0))
    assert reading_of({"reading": reading.to_json()}) == reading
    first, second, _, own = answer_of(with_further(PROPOSED, TEA, reading.further), reading).evidence
    assert first.startswith("texts that would show that it argues for tea are 10^13 times as likely"), first
    assert second.startswith("texts that would show that it talks about Leeds are ") and own.endswith(TEA.text)


def test_weights_are_fitted_to_what_is_so(gnomes):
    part = Behavior("quirk", TEA.text, "advocacy", "validation", None, "tea")
    other = Behavior("topic", LEEDS.text, "topic", "validation", None, "Leeds")
    two = Behavior("several", "; ".join((TEA.text, LEEDS.text)), "2 at once", "validation", None, "", (part, other))
    cases = [
        (Case("two", two, lambda: gnomes), PROPOSED),
        (Case("one", part, lambda: gnomes), PROPOSED[:1] + PROPOSED[3:]),
    ]
    weights = _further(cases * 20, 1.0)
    assert [one.text for one in further(PROPOSED, TEA.text, weights)] == [LEEDS.text]
    assert _further([(Case("null", replace(part, slot=""), lambda: gnomes), PROPOSED[-1:])], 1.0) == pytest.approx(
        (0.0,) * 4
    )
