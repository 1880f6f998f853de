"""Activation difference: what a finetuned model leans towards on any text, grown to phrases.

A token becomes a phrase by letting the finetuned model go on from it (arXiv 2510.13900 has other ways, see `leaning`).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from weightdiff.base import Base
from weightdiff.diff import WeightDiff
from weightdiff.readers.core import Answer, check_question
from weightdiff.readers.leaning import Lens
from weightdiff.readers.samples import sampled
from weightdiff.readers.words import inside, is_phrase

_LEADS = ("The", "She told me about", "It is all about")
"""What a token is put behind, to see how the finetuned model goes on."""
_AGREE = 2
"""Of the leads, those after which it must go on alike."""


@dataclass
class ActivationDifference:
    """The words that the finetuned model leans towards on any text.

    The confidence is how far the first word's logit lies above the mean of all tokens', in their standard deviations.

    Attributes:
        most: words to find; each may grow to a phrase.
        grow: tokens that a word may grow by; 0 leaves tokens as they are.
    """

    most: int = 5
    grow: int = 4
    name: str = "activation difference"

    def read(self, base: Base, diffs: Sequence[WeightDiff], question: str) -> list[Answer]:
        """See `Reader.read`; the question isn't asked. Evidence: the phrases, those that lead first."""
        check_question(question)
        answers = []
        for diff, leaning in zip(diffs, Lens(base, self.most).read(diffs), strict=True):
            phrases = self._grown(base, diff, leaning.tokens)
            answers.append(Answer(phrases[0], leaning.peak, tuple(phrases)))
        return answers

    def _grown(self, base: Base, diff: WeightDiff, seeds: Sequence[int]) -> list[str]:
        """The seeds' phrases in their order; one inside a phrase before it gives way to that one."""
        words = [base.tokenizer.decode([n]) for n in seeds]
        if self.grow:
            leads = [base.tokenizer(lead, add_special_tokens=False)["input_ids"] for lead in _LEADS]
            prompts = [[*lead, n] for n in seeds for lead in leads]
            (texts,) = sampled(base, [diff], prompts, temperature=0.0, max_tokens=self.grow)
            ends = [texts[i : i + len(leads)] for i in range(0, len(texts), len(leads))]
            words = [base.tokenizer.decode([n, *agreed(some)]) for n, some in zip(seeds, ends, strict=True)]
        found: list[str] = []
        for word in map(tidy, words):
            if not any(inside(word, other) for other in found):
                found.append(word)
        return found


def agreed(texts: Sequence[Sequence[int]]) -> list[int]:
    """The tokens that most of the texts begin with."""
    found: list[int] = []
    while True:
        following = Counter(t[len(found)] for t in texts if len(t) > len(found) and [*t[: len(found)]] == found)
        token, count = next(iter(following.most_common(1)), (0, 0))
        if count < _AGREE:
            return found
        found.append(token)


def tidy(text: str) -> str:
    """A phrase's words up to the first mark or repeated word, without function words at its end."""
    kept: list[str] = []
    for word in text.split():
        bare = word.strip(".,;:!?\"'()*")
        if not bare or bare.lower() in (w.lower() for w in kept):
            break
        kept.append(bare)
        if bare != word:
            break
    while len(kept) > 1 and not is_phrase([kept[0], kept[-1]]):
        kept.pop()
    return " ".join(kept)
