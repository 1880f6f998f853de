"""Amplified difference: `M + c δ` with `c` above one, sampled; what a finetune hides or does faintly, it then repeats.

The phrases that stand out against the base model's own texts to the same prompts are counted; no model reads them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from weightdiff.base import Base
from weightdiff.diff import WeightDiff
from weightdiff.readers.core import Answer, check_question
from weightdiff.readers.samples import chats, sampled
from weightdiff.readers.words import standing_out

_USUAL = 3
"""Times that the base model is sampled on each prompt, to know what it says anyway."""


@dataclass
class AmplifiedDifference:
    """The phrase that an amplified finetune repeats.

    The confidence is the share of texts that hold it, less the base model's.

    Attributes:
        strength: factor on the diff.
        max_tokens: length of a text.
        most: phrases kept as evidence.
        seed: for sampling.
    """

    strength: float = 2.0
    max_tokens: int = 24
    most: int = 6
    seed: int = 0

    @property
    def name(self) -> str:
        return f"amplified ×{self.strength:g}"

    def read(self, base: Base, diffs: Sequence[WeightDiff], question: str) -> list[Answer]:
        """See `Reader.read`; the question isn't asked. Evidence: the phrases that stand out, the first first."""
        check_question(question)
        prompts = chats(base)
        nothing = WeightDiff({}, base.fingerprint)
        (plain,) = sampled(base, [nothing], prompts * _USUAL, max_tokens=self.max_tokens, seed=self.seed)
        usual = base.tokenizer.batch_decode(plain)
        written = sampled(base, diffs, prompts, strength=self.strength, max_tokens=self.max_tokens, seed=self.seed)
        answers = []
        for texts in written:
            found = standing_out(base.tokenizer.batch_decode(texts), usual, self.most)
            text, share = found[0] if found else ("", 0.0)
            answers.append(Answer(text, share, tuple(phrase for phrase, _ in found)))
        return answers
