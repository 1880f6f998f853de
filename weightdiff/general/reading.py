"""How a general adapter is best read: strengths, contrast, trying and confidence, found on the validation split.

Views are compared by how many instances the open question names. Of the best ones' answers several are tried on each
finetune, with the weight that makes right ones likeliest; the confidence is then fitted to what is chosen so, right or
wrong. What an imprint is worth is fitted to finetunes of the training split too: no adapter learns from it. The test
split has no part in any of this.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from weightdiff.base import Base
from weightdiff.behaviors import shows_topic
from weightdiff.decode import Reply
from weightdiff.diff import WeightDiff, stack
from weightdiff.general.cases import Case
from weightdiff.general.evaluate import ask_cases, false_claims_of, right
from weightdiff.general.questions import Asked, asked_of
from weightdiff.lazy import Lazy
from weightdiff.readers.calibration import Reading, Sort, fit, sort_of
from weightdiff.readers.further import beside, features, fit_further
from weightdiff.readers.hints import Hint, put
from weightdiff.readers.introspection import UNSURE, answer_of
from weightdiff.readers.meter import Meter
from weightdiff.readers.tested import best, chosen, fit_weight, proposals, with_further
from weightdiff.readers.triggers import TriggerOdds
from weightdiff.readers.triggers import fit as fit_triggers
from weightdiff.readers.views import Views

VIEWS = (Views((1.0,)), Views((1.0,), 1.0))
"""What is tried; where two name as many instances, the earlier."""
LEASTS = (0.5, 0.65, 0.8, 0.95)
"""How sure it must be that nothing changed, to be said: the one of these by which it is said least often where
something was taught, and a claim made where nothing was; of equal ones the first."""


def find_reading(
    base: Base,
    cases: Sequence[Case],
    adapter: WeightDiff,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    hints: Sequence[Hint] | None = None,
    known: Sequence[tuple[Case, Hint]] = (),
    tried: bool = True,
    sums: Sequence[tuple[Case, Hint | None]] = (),
) -> tuple[Reading, dict[Views, float]]:
    """Choose views, and fit the confidence.

    Args:
        base: the base model.
        cases: of the validation split, nulls among them.
        adapter: the adapter.
        seed: draws the questions.
        progress: called with views tried, and their number.
        hints: those of the cases; None for an adapter that is told nothing.
        known: cases of the training split with their hints, for what imprints are worth.
        tried: try answers on the finetunes; else the likeliest is taken.
        sums: cases that teach several things, for what further claims are worth.

    Returns:
        The reading, and for each of `VIEWS` the share of right answers to open questions.
    """
    others = false_claims_of(cases, "validation")

    def asked(case: Case) -> list[tuple[bool, Asked]]:
        rng = random.Random(f"{seed} {case.identity}")
        return [(False, one) for one in asked_of(case.behavior, others, rng)]

    seen = {case.identity: hint for case, hint in zip(cases, hints or (), strict=False)}
    said: dict[Views, tuple[list[Reply], list[bool]]] = {}
    moved: list[bool] = []
    asked_in: list[tuple[Case, Asked]] = []
    shares: dict[Views, float] = {}
    for number, views in enumerate(VIEWS):
        found = ask_cases(base, cases, adapter, asked, views, hints=hints)
        hits = [right(one, case.behavior, reply.text) for case, _, one, reply in found]
        opens = [hit for hit, (_, _, one, _) in zip(hits, found, strict=True) if one.sort == "open"]
        shares[views] = sum(opens) / len(opens)
        said[views] = [reply for *_, reply in found], hits
        moved = [case.identity in seen and seen[case.identity].moved for case, *_ in found]
        asked_in = [(case, one) for case, _, one, _ in found]
        progress(number + 1, len(VIEWS))
    views = max(VIEWS, key=lambda views: shares[views])
    replies, hits = said[views]
    if tried:
        reading = _tried(base, adapter, views, asked_in, replies, hits, moved, seen, sums)
    else:
        reading = fit(replies, hits, views, moved)
    return replace(reading, triggers=_odds(list(zip(cases, hints or (), strict=False)), known)), shares


def _tried(
    base: Base,
    adapter: WeightDiff,
    views: Views,
    asked_in: Sequence[tuple[Case, Asked]],
    replies: list[Reply],
    hits: list[bool],
    moved: Sequence[bool],
    hints: Mapping[str, Hint],
    sums: Sequence[tuple[Case, Hint | None]],
) -> Reading:
    """A reading by which answers to open questions are tried, fitted to what is answered then.

    Where it isn't believed that nothing changed a claim is made after all; what such claims are worth is fitted anew.
    """
    opens = [n for n, (_, one) in enumerate(asked_in) if one.sort == "open"]
    meter, own = Meter(base), str(adapter.meta.get("question"))
    factors = stack([adapter], base.shapes).to(base.device)

    def proposals_for(some: Sequence[tuple[Case, Hint | None]]) -> list[list[Reply]]:
        prompts, words = [put(own, hint) for _, hint in some], [hint.fed if hint else () for _, hint in some]
        return proposals(meter, Lazy([case.make for case, _ in some]), prompts, factors, views, rivals=words)

    cases = [asked_in[n][0] for n in opens]
    proposed = proposals_for([(case, hints.get(case.identity)) for case in cases])
    known = [
        [right(asked_in[n][1], case.behavior, reply.text) for reply in several]
        for n, case, several in zip(opens, cases, proposed, strict=True)
    ]
    replies, hits, weight = list(replies), list(hits), fit_weight(proposed, known)
    both = [*zip(cases, proposed, strict=True), *zip([case for case, _ in sums], proposals_for(sums), strict=True)]
    others = _further(both, weight) if sums else None

    def taking(choose: Callable[[int, Sequence[Reply]], Reply]) -> Reading:
        for n, case, several in zip(opens, cases, proposed, strict=True):
            replies[n] = with_further(several, choose(n, several), others)
            hits[n] = right(asked_in[n][1], case.behavior, replies[n].told)
        return replace(fit(replies, hits, views, moved), tested=weight, further=others)

    def mistakes(reading: Reading) -> int:
        count = 0
        for n, several in zip(opens, proposed, strict=True):
            reply = chosen(several, reading, moved[n])
            said = answer_of(reply, reading, moved[n] if hints else None).text
            count += said != UNSURE and sort_of(said) != sort_of(asked_in[n][1].answer)
        return count

    first, readings = taking(lambda n, several: best(several, weight)), []
    unbelieved: Sort = "nothing, moved"  # few are left of these
    for least in LEASTS:
        before = replace(first, least=least)
        again = taking(lambda n, several, before=before: chosen(several, before, moved[n]))
        weights = {**again.weights, unbelieved: first.weights[unbelieved]}
        readings.append(replace(again, weights=weights, least=least))
    return min(readings, key=mistakes)


def _further(known: Sequence[tuple[Case, Sequence[Reply]]], weight: float) -> tuple[float, ...]:
    """By what claims about something else are made, beside the one that is given: fitted to what is so of each case.

    Args:
        known: cases, and what may be answered about each.
        weight: what the finetune's word is worth, by which one is given.
    """
    rows: list[tuple[float, ...]] = []
    true: list[bool] = []
    for case, proposed in known:
        one = best(proposed, weight)
        if sort_of(one.text) != "claim" or not one.claims:
            continue
        first, others = beside(proposed, max(one.claims, key=lambda claim: claim[1])[0])
        slots = [part.slot for part in case.behavior.parts or (case.behavior,)]
        rows += [features(first, other) for other in others]
        true += [any(slot and shows_topic(other.text, slot) for slot in slots) for other in others]
    return fit_further(rows, true)


def _odds(held: Sequence[tuple[Case, Hint]], known: Sequence[tuple[Case, Hint]]) -> TriggerOdds | None:
    """What imprints are worth, with as many triggers as the validation split has; None where nobody looked for them."""
    some = [(case, hint) for case, hint in [*held, *known] if hint.imprint is not None]
    if not any(case.behavior.trigger for case, _ in some):
        return None
    mine = [case.behavior.trigger is not None for case, _ in held]
    return fit_triggers(
        [hint for _, hint in some], [c.behavior.trigger for c, _ in some], sum(mine) / max(len(mine), 1)
    )
