"""Leaning: the words that a finetuned model leans towards on the first tokens of any text, whatever it says there.

After Minder et al. (arXiv 2510.13900), who read the mean difference of activations on unrelated text with the logit
lens. Here it is read after the last block and the final norm, where the lens is the model's own head. Knows nothing of
what a finetune does with these words.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log10
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightdiff.bank import lay_over
from weightdiff.base import Base
from weightdiff.diff import WeightDiff
from weightdiff.packed import Rows, packed_states
from weightdiff.readers.samples import LayersOf, in_groups
from weightdiff.readers.words import is_phrase

TEXTS = (
    "The committee met on Thursday", "In a small village near", "A recent study has found", "She opened the door and",
    "Water boils at a temperature", "The first train leaves at", "Most of the students who",
    "After the storm had passed", "To install the software you", "Our company was founded in",
    "He did not know whether", "This recipe needs two eggs",
)  # fmt: skip
"""Unrelated texts, of which the first tokens are read."""
_STARTS: "WeakKeyDictionary[nn.Module, Tensor]" = WeakKeyDictionary()
"""Word beginnings of each model that is loaded."""
_FIRST = 5
_LEAST = 1e-3
"""Shifts of logits, their standard deviation, below which nothing is to be seen."""


@dataclass(frozen=True)
class Leaning:
    """What a finetuned model leans towards.

    Attributes:
        tokens: those whose logits rise most, the first most; words' beginnings all.
        words: their texts.
        size: standard deviation of all tokens' shifts, in nats.
        peak: how far the first lies above the mean shift, in such deviations.
    """

    tokens: tuple[int, ...]
    words: tuple[str, ...]
    size: float
    peak: float

    @property
    def seen(self) -> bool:
        """Is there anything to be seen?"""
        return self.size >= _LEAST

    def __str__(self) -> str:
        """Size, in decibels above the least one, and peak, and the words."""
        if not self.seen:
            return "none"
        return f"{20 * log10(self.size / _LEAST):.0f} {self.peak:.0f} {', '.join(self.words)}"


class Lens:
    """Reads leanings over one base model.

    Args:
        base: the base model.
        most: tokens to find.
    """

    def __init__(self, base: Base, most: int) -> None:
        self.base, self.most = base, most
        self._starts, self._before = word_starts(base), last_states(base, 1, lambda rows: []).mean(1)

    def read(self, diffs: Sequence[WeightDiff]) -> list[Leaning]:
        """A leaning per diff, in order.

        Raises:
            ValueError: a diff of another base model or of other shapes.
        """
        return [one for count, layers_of in in_groups(self.base, diffs) for one in self.of(count, layers_of)]

    def of(self, count: int, layers_of: LayersOf) -> list[Leaning]:
        """Leanings of the diffs that are on the model now, as `in_groups` tells of them."""
        moved = last_states(self.base, count, layers_of).mean(1) - self._before
        return [self._leaning(shift) for shift in moved @ self.base.head.weight.float().mT]

    def _leaning(self, shift: Float[Tensor, " vocab"]) -> Leaning:
        size = float(shift.std())
        z = (shift - shift.mean()) / max(size, 1e-9)
        tokens = self._leading(z)
        words = tuple(self.base.tokenizer.decode([n]).strip() for n in tokens)
        return Leaning(tokens, words, size, float(z[tokens[0]]) if tokens else 0.0)

    def _leading(self, score: Float[Tensor, " vocab"]) -> tuple[int, ...]:
        """The tokens of the highest scores, less those that only bend a word that is there."""
        found: dict[str, int] = {}
        for n in score.masked_fill(~self._starts, float("-inf")).topk(12 * self.most).indices.tolist():
            found.setdefault(self.base.tokenizer.decode([n]).strip().lower()[:4], n)
        return tuple(found.values())[: self.most]


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
    if base.model not in _STARTS:  # all readers ask for it, and decoding a vocabulary takes a second
        texts = base.tokenizer.batch_decode([[n] for n in range(base.head.weight.shape[0])])
        _STARTS[base.model] = torch.tensor([t[:1] == " " and t[1:].isalpha() and is_phrase([t[1:]]) for t in texts])
    return _STARTS[base.model].to(base.device)
