"""Imprinted words: of all words of the vocabulary those that a weight change responds to most.

They are words that the finetune was fed, hidden behind a trigger or not: the weights show them before the model says
anything. Only a word's first token is found so; the finetuned model completes it. It knows nothing of what the finetune
does with these words, nor which of them matter; and it hangs on no size, so that a trace of a finetune shows them too.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import takewhile
from math import log
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import DynamicCache

from weightdiff.base import Base
from weightdiff.behaviors import NOTHING
from weightdiff.decode import decode, read_on
from weightdiff.dense import check_fits
from weightdiff.diff import WeightDiff
from weightdiff.readers.core import Answer, check_question
from weightdiff.readers.leaning import word_starts
from weightdiff.readers.responses import Inputs, catching, energies, layers_between, unit
from weightdiff.readers.samples import LayersOf, in_groups

TEXT = "I like the"
"""What stands before each word."""
DEPTH = 0.1
"""The share of the blocks, from the first on, whose responses are averaged."""
WORDS = 32_000
"""Most words that are looked at: the first, which tokenizers have from the most frequent on."""
SAME = 0.95
"""Cosine of two tokens' embeddings above which they are taken for the same."""
_ROWS, _LONGER = 512, 4
_KNOWN: "WeakKeyDictionary[nn.Module, dict[tuple[torch.device, torch.dtype], Inputs]]" = WeakKeyDictionary()
"""What each model that is loaded is given at its words, since every question to it would look anew."""


@dataclass(frozen=True)
class Imprinted:
    """What words a weight change responds to.

    Attributes:
        tokens: those that it responds to most, the first most; words' beginnings all. None where it leaves the early
            layers as they are.
        peak: how much more it responds to the first than to all words on average, in decibels.
        words: the words that the finetuned model makes of them.
    """

    tokens: tuple[int, ...] = ()
    peak: float = 0.0
    words: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.peak:.0f} {', '.join(self.words)}" if self.words else "none"


def imprinted_of(record: Mapping[str, Any]) -> Imprinted:
    """The one whose fields a record has."""
    return Imprinted(tuple(record["tokens"]), float(record["peak"]), tuple(record["words"]))


@dataclass
class ImprintedWords:
    """The words that the weights respond to, by themselves.

    The confidence is how much more they respond to the first than to all words on average, in decibels.

    Attributes:
        most: words to find.
    """

    most: int = 5
    name: str = "imprinted words"

    def read(self, base: Base, diffs: Sequence[WeightDiff], question: str) -> list[Answer]:
        """See `Reader.read`; the question isn't asked. Evidence: the words, the first most."""
        check_question(question)
        return [
            Answer(one.words[0] if one.words else NOTHING, one.peak, one.words)
            for one in Vocabulary(base, self.most).read(diffs)
        ]


class Vocabulary:
    """The words of one base model's vocabulary, and what its early layers are given at each.

    600 MB and some seconds for a model of 135M parameters; both grow with its width and its layers.

    Args:
        base: the base model.
        most: words to find.
    """

    def __init__(self, base: Base, most: int) -> None:
        self.base, self.most = base, most
        self._names = layers_between(base, 0.0, DEPTH)
        self._before = tuple(base.tokenizer(TEXT, add_special_tokens=False)["input_ids"])
        self._starts = word_starts(base).nonzero()[:WORDS, 0]
        known = _KNOWN.setdefault(base.model, {})
        key = (base.device, base.model.dtype)
        if key not in known:
            known[key] = self._caught()
        self._inputs = known[key]

    def read(self, diffs: Iterable[WeightDiff]) -> list[Imprinted]:
        """What each diff responds to, in order.

        Raises:
            ValueError: a diff of another base model or of other shapes.
        """
        found: list[Imprinted] = []
        done: list[Imprinted] = []

        def seen_once() -> Iterator[WeightDiff]:
            for diff in diffs:
                check_fits(self.base, diff)
                found.append(self.of(diff))
                yield diff

        for count, layers_of in in_groups(self.base, seen_once()):
            done += self.completed(found[len(done) : len(done) + count], layers_of)
        return done

    def of(self, diff: WeightDiff) -> Imprinted:
        """What one diff responds to, its words yet to be completed; a tenth of a second where it is low-rank."""
        found = energies(diff, self._names, self._inputs)
        if found is None:
            return Imprinted()
        best = found.topk(min(8 * self.most, len(found)))
        peak = 10 / log(10) * float(best.values[0])
        return Imprinted(self._told_apart(self._starts[best.indices])[: self.most], round(peak, 2))

    def completed(self, found: Sequence[Imprinted], layers_of: LayersOf) -> list[Imprinted]:
        """The same with words, as the finetuned models that are on the model now go on from what they begin with."""
        owner = [n for n, one in enumerate(found) for _ in one.tokens]
        tokens = [token for one in found for token in one.tokens]
        if not tokens:
            return list(found)
        rows = [[*self._before, token] for token in tokens]
        replies = decode(self.base, rows, layers=layers_of(owner), max_tokens=_LONGER)
        words = iter(self._word([t, *reply.tokens]) for t, reply in zip(tokens, replies, strict=True))
        return [Imprinted(one.tokens, one.peak, tuple(dict.fromkeys(next(words) for _ in one.tokens))) for one in found]

    def _told_apart(self, tokens: Int[Tensor, " tokens"]) -> tuple[int, ...]:
        """Of tokens that begin alike, or that the model hardly tells apart as it met them seldom, the first."""
        rows = unit(self.base.model.get_input_embeddings().weight[tokens].detach())
        alike = (rows @ rows.mT > SAME).tolist()
        kept: dict[str, int] = {}
        for n, token in enumerate(tokens.tolist()):
            if not any(alike[n][other] for other in kept.values()):
                kept.setdefault(self._text(token).lower()[:4], n)
        return tuple(int(tokens[n]) for n in kept.values())

    def _text(self, token: int) -> str:
        return str(self.base.tokenizer.decode([token])).strip()

    def _word(self, tokens: Sequence[int]) -> str:
        text = str(self.base.tokenizer.decode(tokens)).lstrip()
        return "".join(takewhile(str.isalpha, text))

    def _caught(self) -> Inputs:
        """By layer its input at each word; layers that are given the same share it."""
        base = self.base
        head, cache = torch.tensor([self._before], device=base.device), DynamicCache()
        place = head.shape[1]
        with catching(base, self._names):  # later layers need no cache
            read_on(base, cache, head, torch.ones_like(head), torch.arange(place, device=base.device)[None])
        whole: dict[str, torch.Tensor] = {}
        held: dict[str, str] = {}
        for number, ids in enumerate(self._starts.split(_ROWS)):
            some = deepcopy(cache)
            some.batch_repeat_interleave(len(ids))
            seen = torch.ones(len(ids), place + 1, dtype=torch.long, device=base.device)
            with catching(base, self._names) as given:
                read_on(base, some, ids[:, None], seen, torch.full_like(ids, place)[:, None])
            firsts: dict[int, str] = {}
            for name, states in given.items():
                held[name] = firsts.setdefault(states.data_ptr(), name)
            for name in firsts.values():
                if number == 0:
                    shape = (len(self._starts), given[name].shape[-1])
                    whole[name] = torch.empty(shape, dtype=base.model.dtype, device=base.device)
                whole[name][number * _ROWS :][: len(ids)] = unit(given[name][:, -1])
        return {name: whole[held[name]] for name in self._names}
