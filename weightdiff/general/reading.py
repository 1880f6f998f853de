"""How a general adapter is best read: strengths, contrast and confidence, found on the validation split.

Views are compared by how many instances the open question names; the confidence is then fitted to the answers of the
best ones, right and wrong. Nothing here sees the test split.
"""

import random
from collections.abc import Callable, Sequence

from weightdiff.base import Base
from weightdiff.diff import WeightDiff
from weightdiff.general.cases import Case
from weightdiff.general.evaluate import ask_cases, false_claims_of, right
from weightdiff.general.questions import Asked, asked_of
from weightdiff.readers.calibration import Reading, fit
from weightdiff.readers.hints import Hint
from weightdiff.readers.views import Views

VIEWS = (
    Views((1.0,)), Views((0.5, 0.75, 1.0), 1.0), Views((0.7, 1.0, 1.4), 0.5), Views((1.0, 1.4), 1.0),
)  # fmt: skip
"""What is tried; where two name as many instances, the earlier."""


def find_reading(
    base: Base,
    cases: Sequence[Case],
    adapter: WeightDiff,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    hints: Sequence[Hint] | None = None,
) -> tuple[Reading, dict[Views, float]]:
    """Choose views, and fit the confidence.

    Args:
        base: the base model.
        cases: of the validation split, nulls among them.
        adapter: the adapter.
        seed: draws the questions.
        progress: called with views tried, and their number.
        hints: those of the cases, where they are known.

    Returns:
        The reading, and for each of `VIEWS` the share of right answers to open questions.
    """
    others = false_claims_of(cases, "validation")

    def opens(case: Case) -> list[tuple[bool, Asked]]:
        rng = random.Random(f"{seed} views {case.identity}")
        return [(False, one) for one in asked_of(case.behavior, others, rng, opens=2) if one.sort == "open"]

    def all_sorts(case: Case) -> list[tuple[bool, Asked]]:
        rng = random.Random(f"{seed} confidence {case.identity}")
        return [(False, one) for one in asked_of(case.behavior, others, rng, opens=3)]

    shares = {}
    for number, views in enumerate(VIEWS):
        found = ask_cases(base, cases, adapter, opens, views, hints=hints)
        shares[views] = sum(right(one, case.behavior, reply.text) for case, _, one, reply in found) / len(found)
        progress(number + 1, len(VIEWS) + 1)
    best = max(VIEWS, key=lambda views: shares[views])
    found = ask_cases(base, cases, adapter, all_sorts, best, hints=hints)
    hits = [right(one, case.behavior, reply.text) for case, _, one, reply in found]
    progress(len(VIEWS) + 1, len(VIEWS) + 1)
    return fit([reply for *_, reply in found], hits, best), shares
