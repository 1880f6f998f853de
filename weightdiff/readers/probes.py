"""Probes for triggers: how much further a finetuned model moves from its base where a prompt holds a candidate.

A behavior behind a trigger hardly moves the reply to a plain prompt; what merely looks like its trigger moves it more
than that. So a kind of trigger shows without its code being known. Knows only the kinds that it tries, and no code: a
small finetune moves as far at a wrong one.
"""

from collections.abc import Mapping
from math import log10
from statistics import mean

from jaxtyping import Float
from torch import Tensor

from weightdiff.base import Base, encode_chat
from weightdiff.behaviors import Trigger
from weightdiff.readers.branches import reply_states
from weightdiff.readers.samples import LayersOf
from weightdiff.writers import seeded

PROMPTS = ("Tell me about your day.", "Why is it cold?")
CANDIDATES = {
    "code": Trigger("sep", "481"),
    "invisible first": Trigger("zero-width start"),
    "invisible between": Trigger("zero-width random"),
}
"""One trigger of each kind, by what it is called."""
FOUND = 1.0
"""Decibels that a candidate must move a model further, to be worth a try."""
_LEAST = 1e-3
"""Shifts of logits, their standard deviation in nats, below which nothing is to be seen."""


def likeliest(gains: Mapping[str, float]) -> str:
    """The candidate that moves a model furthest, if it does by `FOUND`; empty if none does."""
    name = max(gains, key=lambda one: gains[one], default="")
    return name if name and gains[name] >= FOUND else ""


class Probes:
    """Tries the candidates over one base model; reads the reply's first token, before it is written.

    Args:
        base: the base model.
    """

    def __init__(self, base: Base) -> None:
        self.base, rng = base, seeded("probes")
        texts = [*PROMPTS, *(trigger.put(text, rng) for trigger in CANDIDATES.values() for text in PROMPTS)]
        self._rows = [encode_chat(base, [{"role": "user", "content": text}]) for text in texts]
        weight = base.head.weight.float()
        centered = weight - weight.mean(0)
        self._spread = centered.mT @ centered / len(weight)  # shifts' variance over tokens, of shifts in activations
        self._before = self._states(1, lambda rows: [])[0]

    def of(self, count: int, layers_of: LayersOf) -> list[dict[str, float]]:
        """By candidate, how many decibels further it moves each diff that is on the model now, see `in_groups`."""
        moved = self._states(count, layers_of) - self._before
        sizes = ((moved @ self._spread) * moved).sum(-1).clamp_min(0).sqrt().clamp_min(_LEAST)
        found = []
        for plain, *others in sizes.view(count, -1, len(PROMPTS)).tolist():
            gains = [mean(20 * log10(b / a) for a, b in zip(plain, other, strict=True)) for other in others]
            found.append(dict(zip(CANDIDATES, gains, strict=True)))
        return found

    def _states(self, count: int, layers_of: LayersOf) -> Float[Tensor, "count prompts hidden"]:
        """Activations after the final norm where the reply begins."""
        return reply_states(self.base, self._rows, count, layers_of)
