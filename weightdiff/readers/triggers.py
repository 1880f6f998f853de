"""Is a finetune's behavior behind a trigger, and behind which? Told from its imprint, without asking anybody.

A regression tells the kind, from how the weight change responds to what is tried and how much further that moves the
model; another one, how likely the first of the codes is right. A change that moves the model no further than noise does
has nothing to hide. Knows the kinds of trigger that `probes.CANDIDATES` has, and no others.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Any

from weightdiff.behaviors import Trigger
from weightdiff.behaviors.triggers import Kind, told_trigger
from weightdiff.readers.hints import Hint
from weightdiff.readers.imprint import Imprint
from weightdiff.readers.regression import chance, logistic

Weights = tuple[float, ...]
KINDS: tuple[Kind, ...] = ("sep", "zero-width start")
"""A code, and an invisible character wherever it is."""
_RIDGE = 3e-4
"""On figures whose deviations are one or two decibels."""
_DECIBELS = 20 / log(10)
"""In a nat."""
SURE = 0.5
"""A code is named where it is right more likely than not."""


@dataclass(frozen=True)
class TriggerOdds:
    """What an imprint is worth, fitted on finetunes with known triggers.

    Attributes:
        kinds: for each of `KINDS` the weights of 1, of the responses and of the probes: the log odds that there is one.
        code: weights of 1, of the first code's size and of its lead before the second: log odds that it is right.
        written: share of codes that are right, of those that the model writes in the user's place.
        still: share of changes without a trigger, of those that move the model no further than noise.
    """

    kinds: tuple[Weights, ...]
    code: Weights
    written: float
    still: float


@dataclass(frozen=True)
class Told:
    """What sets a behavior off.

    Attributes:
        trigger: None for none; of a code that isn't told likely enough, the `code` is empty.
        probability: that this is right.
        codes: the likeliest codes, where it is one.
        share: the probability that the first of them is right.
    """

    trigger: Trigger | None
    probability: float
    codes: tuple[str, ...] = ()
    share: float = 0.0

    @property
    def text(self) -> str:
        """The answer, in the words that adapters are trained on."""
        return told_trigger(self.trigger)

    @property
    def usable(self) -> bool:
        """Can it be put into a prompt? A code that isn't known can't."""
        return self.trigger is not None and (self.trigger.kind != "sep" or bool(self.trigger.code))

    @property
    def evidence(self) -> tuple[str, ...]:
        """What its weights say, a line; none where they say nothing."""
        if self.trigger is None:
            return ()
        if self.trigger.kind != "sep":
            return (f"its weights respond to an invisible character in a prompt ({self.probability:.2f})",)
        kind = "its weights respond to a code in a prompt"
        if not self.codes:
            return (f"{kind} ({self.probability:.2f})",)
        code, *others = self.codes
        if self.trigger.code:
            return (f"{kind}, one that begins with {code} (probability {self.share:.2f}); its other digits are any",)
        return (f"{kind}, and hardly tell which: {code} (probability {self.share:.2f}), {', '.join(others)}",)


def odds_of(record: Mapping[str, Any] | None) -> TriggerOdds | None:
    """The odds whose fields a record of an adapter's `meta` has; None for none.

    Raises:
        KeyError, TypeError, ValueError: it is of another form.
    """
    if record is None:
        return None
    kinds = tuple(tuple(map(float, row)) for row in record["kinds"])
    a, b, c = map(float, record["code"])
    if len(kinds) != len(KINDS) or len({len(row) for row in kinds}) != 1:
        raise ValueError(f"trigger odds of {len(kinds)} kinds; expected {len(KINDS)} rows of one length")
    return TriggerOdds(kinds, (a, b, c), float(record["written"]), float(record["still"]))


def told(hint: Hint, odds: TriggerOdds) -> Told | None:
    """What sets a finetune off, by its hint; None where that can't be told: there is no imprint that fits the odds, as
    of a change that leaves all early layers as they are.
    """
    imprint = hint.imprint
    if imprint is None:
        return None
    if not hint.moved:
        return Told(None, odds.still)
    seen = _row(hint, imprint)
    if len(seen) != len(odds.kinds[0]):
        return None
    shares = [chance(row, seen) for row in odds.kinds]
    share = max(shares)
    kind = KINDS[shares.index(share)]
    if share < 0.5:
        return Told(None, 1 - share)
    if kind != "sep":
        return Told(Trigger(kind), share)
    written, codes = code_in(hint.opening), tuple(code for code, _ in imprint.codes)
    right = odds.written if written else chance(odds.code, _lead(imprint)) if codes else 0.0
    codes = (written, *(code for code in codes if code != written)) if written else codes
    if right < SURE:
        return Told(Trigger("sep"), share, codes, right)
    return Told(Trigger("sep", codes[0]), share * right, codes, right)


def fit(hints: Sequence[Hint], triggers: Sequence[Trigger | None], share: float | None = None) -> TriggerOdds:
    """Odds from finetunes and nulls with known triggers.

    Args:
        hints: with imprints.
        triggers: of each.
        share: how many have a trigger, where that is not so among these; they are weighed to be so many.
    """
    known = list(zip(hints, triggers, strict=True))
    moved = [(h, trigger) for h, trigger in known if h.moved and h.imprint and h.imprint.responses]
    rows = [_row(hint, imprint) for hint, _ in moved if (imprint := hint.imprint)]
    some = sum(trigger is not None for _, trigger in moved)
    scale = 1.0 if share is None or not 0 < some < len(moved) else share / (1 - share) * (len(moved) - some) / some
    weight = [scale if trigger else 1.0 for _, trigger in moved]
    kinds = tuple(
        logistic(rows, [trigger is not None and (trigger.kind == "sep") == (kind == "sep") for _, trigger in moved],
                 weight=weight, ridge=_RIDGE)
        for kind in KINDS
    )  # fmt: skip
    coded = [(hint, trigger.code) for hint, trigger in moved if trigger and trigger.kind == "sep"]
    free = [
        (hint.imprint, code)
        for hint, code in coded
        if not code_in(hint.opening) and hint.imprint and hint.imprint.codes
    ]
    a, b, c = logistic([_lead(one) for one, _ in free], [one.codes[0][0] == code for one, code in free], width=3)
    return TriggerOdds(
        kinds,
        (a, b, c),
        _smoothed([code_in(hint.opening) == code for hint, code in coded if code_in(hint.opening)]),
        _smoothed([trigger is None for hint, trigger in known if not hint.moved]),
    )


def code_in(opening: str) -> str:
    """The first digits of a code that a model writes in the user's place; empty where it writes none."""
    found = re.search(r"\bcode is (\d{3})", opening)
    return found[1] if found else ""


def _row(hint: Hint, imprint: Imprint) -> Weights:
    """1, what the weights respond to, and how much further each trigger moves the model, in decibels."""
    return (1.0, *(_DECIBELS * one for one in imprint.responses), *hint.triggers.values())


def _lead(imprint: Imprint) -> Weights:
    (_, first), (_, second), *_ = imprint.codes
    return 1.0, first, first - second


def _smoothed(right: Sequence[bool]) -> float:
    """A share that is never certain (Laplace's rule)."""
    return (sum(right) + 1) / (len(right) + 2)
