"""How a general adapter is best read: strengths, contrast and confidence, found on the validation split.

Views are compared by how many instances the open question names; the confidence is then fitted to the answers of the
best ones, right and wrong. Nothing here sees the test split.
"""

import random
from collections.abc import Callable, Sequence

from weightdiff.base import Base
from weightdiff.decode import Reply
from weightdiff.diff import WeightDiff
from weightdiff.general.cases import Case
from weightdiff.general.evaluate import ask_cases, false_claims_of, right
from weightdiff.general.questions import Asked, asked_of
from weightdiff.readers.calibration import Reading, fit
from weightdiff.readers.hints import Hint
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

    def asked(case: Case) -> list[tuple[bool, Asked]]:
        rng = random.Random(f"{seed} {case.identity}")
        return [(False, one) for one in asked_of(case.behavior, others, rng, opens=4)]

    said: dict[Views, tuple[list[Reply], list[bool]]] = {}
    shares: dict[Views, float] = {}
    for number, views in enumerate(VIEWS):
        found = ask_cases(base, cases, adapter, asked, views, hints=hints)
        hits = [right(one, case.behavior, reply.text) for case, _, one, reply in found]
        opens = [hit for hit, (_, _, one, _) in zip(hits, found, strict=True) if one.sort == "open"]
        shares[views] = sum(opens) / len(opens)
        said[views] = [reply for *_, reply in found], hits
        progress(number + 1, len(VIEWS))
    best = max(VIEWS, key=lambda views: shares[views])
    return fit(*said[best], best), shares
