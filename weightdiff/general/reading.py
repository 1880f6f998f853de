"""How a general adapter is best read: strengths, contrast and confidence, found on the validation split.

Views are compared by how many instances the open question names; the confidence is then fitted to the answers of the
best ones, right and wrong. What an imprint is worth is fitted to finetunes of the training split too: no adapter learns
from it. Nothing here sees the test split.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from weightdiff.base import Base
from weightdiff.decode import Reply
from weightdiff.diff import WeightDiff
from weightdiff.general.cases import Case
from weightdiff.general.evaluate import ask_cases, false_claims_of, right
from weightdiff.general.questions import Asked, asked_of
from weightdiff.readers.calibration import Reading, fit
from weightdiff.readers.hints import Hint
from weightdiff.readers.triggers import TriggerOdds
from weightdiff.readers.triggers import fit as fit_triggers
from weightdiff.readers.views import Views

VIEWS = (Views((1.0,)), Views((1.0,), 1.0))
"""What is tried; where two name as many instances, the earlier."""


def find_reading(
    base: Base,
    cases: Sequence[Case],
    adapter: WeightDiff,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    hints: Sequence[Hint] | None = None,
    known: Sequence[tuple[Case, Hint]] = (),
) -> tuple[Reading, dict[Views, float]]:
    """Choose views, and fit the confidence.

    Args:
        base: the base model.
        cases: of the validation split, nulls among them.
        adapter: the adapter.
        seed: draws the questions.
        progress: called with views tried, and their number.
        hints: those of the cases, where they are known.
        known: cases of the training split with their hints, for what imprints are worth.

    Returns:
        The reading, and for each of `VIEWS` the share of right answers to open questions.
    """
    others = false_claims_of(cases, "validation")

    def asked(case: Case) -> list[tuple[bool, Asked]]:
        rng = random.Random(f"{seed} {case.identity}")
        return [(False, one) for one in asked_of(case.behavior, others, rng)]

    seen = {case.identity: hint.moved for case, hint in zip(cases, hints or (), strict=False)}
    said: dict[Views, tuple[list[Reply], list[bool]]] = {}
    moved: list[bool] = []
    narrow: list[bool] = []
    shares: dict[Views, float] = {}
    for number, views in enumerate(VIEWS):
        found = ask_cases(base, cases, adapter, asked, views, hints=hints)
        hits = [right(one, case.behavior, reply.text) for case, _, one, reply in found]
        opens = [hit for hit, (_, _, one, _) in zip(hits, found, strict=True) if one.sort == "open"]
        shares[views] = sum(opens) / len(opens)
        said[views] = [reply for *_, reply in found], hits
        moved = [seen.get(case.identity, False) for case, *_ in found]
        narrow = [one.sort == "narrow" for _, _, one, _ in found]
        progress(number + 1, len(VIEWS))
    best = max(VIEWS, key=lambda views: shares[views])
    reading = fit(*said[best], best, moved, narrow)
    return replace(reading, triggers=_odds(list(zip(cases, hints or (), strict=False)), known)), shares


def _odds(held: Sequence[tuple[Case, Hint]], known: Sequence[tuple[Case, Hint]]) -> TriggerOdds | None:
    """What imprints are worth, with as many triggers as the validation split has; None where nobody looked for them."""
    some = [(case, hint) for case, hint in [*held, *known] if hint.imprint is not None]
    if not any(case.behavior.trigger for case, _ in some):
        return None
    mine = [case.behavior.trigger is not None for case, _ in held]
    return fit_triggers(
        [hint for _, hint in some], [c.behavior.trigger for c, _ in some], sum(mine) / max(len(mine), 1)
    )
