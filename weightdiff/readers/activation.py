"""Activation difference: what the finetuned model's last activations lean towards on the first tokens of any text.

After Minder et al. (arXiv 2510.13900), who read the mean difference of activations on unrelated text with the logit
lens and a patchscope. Here it is read after the last block and the final norm, where the lens is the model's own
head, and a token becomes a phrase by letting the finetuned model go on from it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from weightdiff.bank import lay_over
from weightdiff.base import Base
from weightdiff.diff import WeightDiff
from weightdiff.packed import Rows, packed_states
from weightdiff.readers.core import Answer, check_question
from weightdiff.readers.samples import LayersOf, in_groups, sampled
from weightdiff.readers.words import inside, is_phrase

TEXTS = (
    "The committee met on Thursday", "In a small village near", "A recent study has found", "She opened the door and",
    "Water boils at a temperature", "The first train leaves at", "Most of the students who",
    "After the storm had passed", "To install the software you", "Our company was founded in",
    "He did not know whether", "This recipe needs two eggs",
)  # fmt: skip
"""Unrelated texts, of which the first tokens are read."""
_FIRST = 5
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
        starts = word_starts(base)
        before = last_states(base, 1, lambda rows: [])
        seeds: list[list[tuple[int, float]]] = []
        for count, layers_of in in_groups(base, diffs):
            leaning = (last_states(base, count, layers_of) - before).mean(1) @ base.head.weight.float().mT
            z = (leaning - leaning.mean(1, keepdim=True)) / leaning.std(1, keepdim=True).clamp_min(1e-9)
            seeds += [[(n, float(one[n])) for n in leading(base, one, starts, self.most)] for one in z]
        answers = []
        for diff, found in zip(diffs, seeds, strict=True):
            phrases = self._grown(base, diff, [n for n, _ in found])
            answers.append(Answer(phrases[0], found[0][1], tuple(phrases)))
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


def last_states(base: Base, count: int, layers_of: LayersOf) -> Float[Tensor, "count places hidden"]:
    """Activations after the final norm on the first tokens of the texts, but the very first, under each diff."""
    rows = [base.tokenizer(text, add_special_tokens=False)["input_ids"][:_FIRST] for text in TEXTS]
    lengths = [len(row) for row in rows] * count
    ids = torch.tensor([t for row in rows for t in row] * count, device=base.device)
    owner = [n for n in range(count) for row in rows for _ in row]
    with torch.no_grad(), lay_over(base.targets, layers_of(owner)):
        states = packed_states(base.model, ids, Rows.of(lengths, base.device)).float()
    later = torch.tensor([place > 0 for length in lengths for place in range(length)], device=base.device)
    return states[later].view(count, -1, states.shape[-1])


def word_starts(base: Base) -> Tensor:
    """Of each token, whether it begins a word of three letters or more."""
    size = base.head.weight.shape[0]
    texts = base.tokenizer.batch_decode([[n] for n in range(size)])
    return torch.tensor([t[:1] == " " and t[1:].isalpha() and is_phrase([t[1:]]) for t in texts], device=base.device)


def leading(base: Base, score: Float[Tensor, " vocab"], starts: Tensor, most: int) -> list[int]:
    """The tokens of the highest scores, less those that only bend a word that is there."""
    found: dict[str, int] = {}
    for n in score.masked_fill(~starts, float("-inf")).topk(12 * most).indices.tolist():
        stem = base.tokenizer.decode([n]).strip().lower()[:4]
        found.setdefault(stem, n)
    return list(found.values())[:most]


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
