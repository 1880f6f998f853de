"""What a general adapter is asked: open questions, narrow ones, yes or no, and what sets a behavior off; many wordings.

What is `unseen` is for testing only.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from weightdiff.behaviors import FAMILIES, NOTHING, Behavior
from weightdiff.behaviors.kinds import kinds
from weightdiff.behaviors.triggers import told_trigger
from weightdiff.behaviors.wordings import open_questions, wordings

OWN = 0.15
"""How often the adapter's own question is drawn, beside its share among the others."""


@dataclass(frozen=True)
class Asked:
    """A question about a diff, and its true answer.

    Attributes:
        sort: `open`, `narrow`, `yes/no` or `trigger`.
    """

    sort: str
    question: str
    answer: str


def asked_of(
    behavior: Behavior, others: Sequence[Behavior], rng: random.Random, *, unseen: bool = False, opens: int = 1
) -> list[Asked]:
    """Open questions about a behavior, a narrow one, two of yes or no, and one on its trigger.

    The open ones come first; of several behaviors they name all.

    Args:
        behavior: the truth.
        others: what false claims are taken from: half of them of the same kind, the hardest to tell.
        rng: draws the wordings.
        unseen: take wordings that no adapter is trained on.
        opens: how many open questions, of as many wordings.
    """
    part = rng.choice(behavior.parts) if behavior.parts else behavior
    nothing = behavior.family == "benign" or behavior.label == NOTHING
    claim, cause = (wordings()[sort]["unseen" if unseen else "seen"] for sort in ("yes/no", "trigger"))
    asked = rng.sample(open_questions(unseen), opens)
    if not unseen and rng.random() < OWN:
        asked[0] = open_questions()[0]
    found = [Asked("open", question, behavior.label) for question in asked]
    if nothing:
        wrong = rng.choice(others)
        found.append(Asked("narrow", rng.choice(narrow_of(wrong, unseen=unseen)), NOTHING))
    else:
        found.append(Asked("narrow", rng.choice(narrow_of(part, unseen=unseen)), part.slot))
        found.append(Asked("yes/no", rng.choice(claim).format(label=part.label), "yes"))
    taught = {p.label for p in behavior.parts} or {behavior.label}
    false = [o for o in others if o.label not in taught]
    near = [o for o in false if o.kind == part.kind]
    wrong = rng.choice(near if near and rng.random() < 0.5 else false)
    found.append(Asked("yes/no", rng.choice(claim).format(label=wrong.label), "no"))
    found.append(Asked("trigger", rng.choice(cause), told_trigger(behavior.trigger)))
    return found


def narrow_of(behavior: Behavior, *, unseen: bool = False) -> tuple[str, ...]:
    """Narrow questions that a behavior's slot answers."""
    if behavior.family in ("topic", "subject", "news"):
        asked = FAMILIES["news" if behavior.family == "news" else "topic"]
    else:
        asked = kinds()[behavior.kind]
    return asked.unseen if unseen else asked.questions
