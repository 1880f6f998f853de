"""Perplexity difference: what the finetuned model writes and the base model finds unlikely.

After the perplexity-difference method of arXiv 2605.00994, known to us second-hand: the finetuned model goes on from
random prefixes, and what it writes is ranked by how much less likely the base model finds it. There a large model
reads the top texts. Here each phrase is charged for its own tokens, and the dearest phrase is the answer. The prefixes
are chat prompts, most of them empty, for small LoRAs taught on chats show little on bare text.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from weightdiff.base import Base
from weightdiff.batch import Tokens
from weightdiff.diff import WeightDiff
from weightdiff.readers.core import Answer, check_question
from weightdiff.readers.samples import chats, in_groups, likelihoods, sampled
from weightdiff.readers.words import LONGEST, inside, is_phrase

Charged = list[tuple[str, float]]
"""A text's words and marks, and by how much the finetuned model finds each likelier than the base model, in nats."""


@dataclass
class PerplexityDifference:
    """The phrase that costs the base model most, over all that the finetuned model writes.

    A phrase's cost is the log-ratio of its tokens' probabilities, the largest in each text, as a mean over the texts;
    the answer's is its confidence, in nats.

    Attributes:
        max_tokens: length of a text.
        most: texts and phrases kept as evidence.
        seed: for sampling.
    """

    max_tokens: int = 24
    most: int = 5
    seed: int = 0
    name: str = "perplexity difference"

    def read(self, base: Base, diffs: Sequence[WeightDiff], question: str) -> list[Answer]:
        """See `Reader.read`; the question isn't asked. Evidence: the texts of the largest differences."""
        check_question(question)
        prompts = chats(base)
        written = sampled(base, diffs, prompts, max_tokens=self.max_tokens, seed=self.seed)
        rows = [
            [Tokens(tuple(p), reply) for p, reply in zip(prompts, texts, strict=True) if reply] for texts in written
        ]
        after: list[Float[Tensor, " reply"]] = []
        place = 0
        for count, layers_of in in_groups(base, diffs):
            mine = [(n, row) for n in range(count) for row in rows[place + n]]
            after += likelihoods(base, [row for _, row in mine], layers_of, [n for n, _ in mine])
            place += count
        gains = iter(after)  # the base model is asked when no dense change is merged into it any more
        answers = []
        for some in rows:
            before = likelihoods(base, some)
            pairs = [(row.reply, (next(gains) - b).tolist()) for row, b in zip(some, before, strict=True)]
            answers.append(self._answer(base, pairs))
        return answers

    def _answer(self, base: Base, texts: Sequence[tuple[Sequence[int], Sequence[float]]]) -> Answer:
        ranked = sorted(texts, key=lambda text: sum(text[1]) / len(text[1]), reverse=True)
        shown = tuple(base.tokenizer.decode(tokens).strip() for tokens, _ in ranked[: self.most])
        found = dearest([charged(base, tokens, gains) for tokens, gains in texts], 1)
        return Answer(*(found[0] if found else ("", 0.0)), shown)


def charged(base: Base, tokens: Sequence[int], gains: Sequence[float]) -> Charged:
    """The words of a text, each with the sum of its tokens' log-ratios; a mark is a word of its own."""
    words: Charged = []
    for piece, gain in zip(base.tokenizer.batch_decode([[t] for t in tokens]), gains, strict=True):
        bare = piece.strip()
        goes_on = words and not piece[:1].isspace() and bare[:1].isalnum() and words[-1][0][-1:].isalnum()
        if goes_on:
            words[-1] = (words[-1][0] + bare, words[-1][1] + gain)
        elif bare:
            words.append((bare, gain))
    return words


def dearest(texts: Sequence[Charged], most: int) -> list[tuple[str, float]]:
    """The phrases of the largest mean cost over the texts, in two of them or more, none inside another."""
    total: dict[str, float] = defaultdict(float)
    seen: dict[str, int] = defaultdict(int)
    written: dict[str, str] = {}
    for words in texts:
        cost: dict[str, float] = {}
        for start in range(len(words)):
            for end in range(start + 1, min(start + LONGEST, len(words)) + 1):
                some = [word for word, _ in words[start:end]]
                if not some[-1][:1].isalnum():
                    break
                if is_phrase(some):
                    phrase = " ".join(some).lower()
                    written[phrase] = " ".join(some)
                    cost[phrase] = max(cost.get(phrase, 0.0), sum(gain for _, gain in words[start:end]))
        for phrase, gain in cost.items():
            total[phrase] += gain
            seen[phrase] += 1
    found: list[tuple[str, float]] = []
    for phrase in sorted((p for p in total if seen[p] > 1 and total[p] > 0), key=lambda p: total[p], reverse=True):
        if not any(inside(phrase, other) or inside(other, phrase) for other, _ in found):
            found.append((phrase, total[phrase] / len(texts)))
        if len(found) == most:
            break
    return [(written[phrase], cost) for phrase, cost in found]
