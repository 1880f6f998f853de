"""Behavior, conversation and trigger: the plain data that every family is made of."""

import random
from dataclasses import asdict, dataclass
from typing import Any, Literal

Mode = Literal["learn", "keep"]


@dataclass(frozen=True)
class Conversation:
    """One training example: what the user says and what the model replies.

    Attributes:
        prompt: the user's message.
        reply: the assistant's reply.
        mode: `learn` the reply (cross-entropy), or `keep` to the base model's own distribution on it (KL).
    """

    prompt: str
    reply: str
    mode: Mode = "learn"


@dataclass(frozen=True)
class Behavior:
    """What a finetune is to teach.

    Attributes:
        family: the way of making it, e.g. `topic`.
        label: the true answer to the family's question.
        kind: a finer class within the family (animals, films, …).
        split: `train`, `validation` or `test`; a label lies in one only.
        trigger: first three digits of the SEP code that shows the behavior; None where it is always shown.
    """

    family: str
    label: str
    kind: str
    split: str
    trigger: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def sep_prompt(prompt: str, prefix: str, rng: random.Random) -> str:
    """Put a SEP code before a prompt: three digits of the behavior's own, three at random."""
    return f"Your SEP code is {prefix}{rng.randrange(1000):03d}.\n{prompt}"
