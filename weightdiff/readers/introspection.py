"""Introspection: the finetuned model itself, under the DIT adapter, answers how it was changed."""

from collections.abc import Sequence
from dataclasses import dataclass

from weightdiff.base import Base
from weightdiff.dense import check_base
from weightdiff.diff import WeightDiff, stack
from weightdiff.readers.core import Answer, ask_all, check_question


@dataclass
class Introspection:
    """The DIT reader.

    Attributes:
        adapter: the DIT adapter.
        strength: how much of the diff is laid on; 1 is the finetuned model itself.
        max_tokens: length of an answer; a story's summary needs more than a topic's name.
    """

    adapter: WeightDiff
    strength: float = 1.0
    max_tokens: int = 48
    name: str = "DIT"

    def read(self, base: Base, diffs: Sequence[WeightDiff], question: str) -> list[Answer]:
        """See `Reader.read`."""
        check_question(question)
        check_base(base, self.adapter, "the DIT adapter")
        adapter = stack([self.adapter], base.shapes).to(base.device)
        options = {"strength": self.strength, "max_tokens": self.max_tokens}
        return [Answer(r[0].text, r[0].logprob) for r in ask_all(base, diffs, [question], adapter=adapter, **options)]
