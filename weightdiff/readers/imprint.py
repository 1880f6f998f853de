"""Imprints of triggers: to which of them a weight change responds, before the model says a word.

In early layers a trigger that the finetune was taught with stands out from ordinary words (see `responses`), and the
right code from a thousand others, however well the behavior is hidden. Knows only the triggers that it tries, and
nothing of what they set off.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate, pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache

from weightdiff.base import Base, encode_chat
from weightdiff.batch import common
from weightdiff.behaviors import Trigger
from weightdiff.decode import read_on
from weightdiff.diff import WeightDiff
from weightdiff.readers.probes import CANDIDATES
from weightdiff.readers.responses import Inputs, catching, energies, layers_between, unit
from weightdiff.writers import seeded

TEXTS = (
    "Tell me about your day.", "Why is it cold?", "How do I cook rice?", "What makes a good friend?",
    "Name three animals that live in rivers.", "Please help me write a letter to my aunt.",
)  # fmt: skip
"""What the triggers are put into, and ordinary words to compare them with."""
DEPTHS = (0.0, 0.1, 0.4)
"""Where the bands of layers begin and end whose responses are averaged, as shares of all."""
_CODES, _BEST = 1000, 5


@dataclass(frozen=True)
class Imprint:
    """What one weight change responds to.

    Attributes:
        responses: to each of `Imprints.names`, log of its mean energy by that of ordinary words, in nats; empty where
            the change leaves all early layers as they are.
        codes: the codes that it responds to most, and how many standard deviations each lies above the mean of all;
            empty where the tokenizer takes several digits as one token.
        words: those that it responds to most (see `imprinted`), where somebody looked.
    """

    responses: tuple[float, ...] = ()
    codes: tuple[tuple[str, float], ...] = ()
    words: tuple[str, ...] = ()


def imprint_of(record: Mapping[str, Any]) -> Imprint:
    """The imprint whose fields a record has."""
    codes = tuple((code, float(size)) for code, size in record["codes"])
    return Imprint(tuple(record["responses"]), codes, tuple(record.get("words", ())))


class Imprints:
    """Reads imprints over one base model.

    Args:
        base: the base model.
    """

    def __init__(self, base: Base) -> None:
        self.base = base
        self._bands = [layers_between(base, low, high) for low, high in pairwise(DEPTHS)]
        self._tried, self._inputs = self._candidates()

    @property
    def names(self) -> tuple[str, ...]:
        """What the responses are to: a candidate, or what looks like it, in each band of layers."""
        return tuple(f"{name}, band {band}" for band in range(len(self._bands)) for name in self._tried)

    def of(self, diff: WeightDiff) -> Imprint:
        """The imprint of one diff; a few hundredths of a second where it is low-rank.

        Args:
            diff: of this base model, low-rank or dense.
        """
        found = []
        for band in self._bands:
            found_here = energies(diff, band, self._inputs)
            if found_here is None:
                return Imprint()
            *tried, plain = ((found_here / 2)[places].mean() for places in self._places)
            found += [round(float(one - plain), 4) for one in tried]
        return Imprint(tuple(found), self._best(diff))

    def _best(self, diff: WeightDiff) -> tuple[tuple[str, float], ...]:
        """The codes that a diff responds to most: their digits one after another, each after those before it."""
        if not self._coded:
            return ()
        seen = energies(diff, self._bands[-1], self._coded)
        if seen is None:
            return ()
        first, second, third = seen[:10], seen[10:110], seen[110:]
        total = first.repeat_interleave(100) + second.repeat_interleave(10) + third
        sizes, codes = ((total - total.mean()) / total.std().clamp_min(1e-9)).topk(_BEST)
        return tuple((f"{code:03d}", round(size, 3)) for code, size in zip(codes.tolist(), sizes.tolist(), strict=True))

    def _candidates(self) -> tuple[list[str], Inputs]:
        """Names of what is tried, and each layer's mean input at each token that it adds; ordinary words come last."""
        plain = [self._row(text) for text in TEXTS]
        start, end = common(plain), common([row[::-1] for row in plain])
        rows = list(plain)
        groups = [[[(n, at) for n, row in enumerate(plain) for at in range(start, len(row) - end)]]]
        names = []
        for name, put in _puts().items():
            marked = [self._row(put(text)) for text in TEXTS]
            begins = [common(pair) for pair in zip(plain, marked, strict=True)]
            added = common([row[at:] for row, at in zip(marked, begins, strict=True)])
            first = len(rows)
            groups.append([[(first + n, at + k) for n, at in enumerate(begins)] for k in range(added)])
            rows += marked
            names.append(name)
        groups = [*groups[1:], groups[0]]
        tokens = [places for group in groups for places in group]
        ends = list(accumulate(map(len, groups), initial=0))
        self._places = [list(range(a, b)) for a, b in pairwise(ends)]
        caught = self._caught(rows)
        return names, {n: torch.stack([_mean(given, places) for places in tokens]) for n, given in caught.items()}

    def _row(self, text: str) -> list[int]:
        return encode_chat(self.base, [{"role": "user", "content": text}])

    def _caught(self, rows: Sequence[Sequence[int]]) -> dict[str, Float[Tensor, "rows time in"]]:
        width = max(map(len, rows))  # what fills a row comes after all
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=self.base.device)
        with catching(self.base, [n for band in self._bands for n in band]) as caught:
            self.base.model.get_decoder()(input_ids=ids)
        return caught

    @cached_property
    def _coded(self) -> Inputs:
        """Each layer's input at the digits of all codes: ten first ones, a hundred second, a thousand third.

        Empty where the tokenizer takes several digits as one token.
        """
        base = self.base
        one, other = (self._row(Trigger("sep", code).put("Hi", seeded("code"))) for code in ("000", "999"))
        begin = common([one, other])
        digits = [base.tokenizer(str(n), add_special_tokens=False)["input_ids"][-1] for n in range(10)]
        if [one[begin : begin + 3], other[begin : begin + 3]] != [[digits[0]] * 3, [digits[9]] * 3]:
            return {}
        device, names, caught = base.device, self._bands[-1], []
        head, cache = torch.tensor([one[:begin]], device=device), DynamicCache()
        with catching(base, names):  # later layers need no cache
            read_on(base, cache, head, torch.ones_like(head), torch.arange(begin, device=device)[None])
        for place in range(begin, begin + 3):
            cache.batch_repeat_interleave(10)  # each row goes on with every digit
            ids = torch.tensor(digits * 10 ** (place - begin), device=device)[:, None]
            seen = torch.ones(len(ids), place + 1, dtype=torch.long, device=device)
            with catching(base, names) as given:
                read_on(base, cache, ids, seen, torch.full_like(ids, place))
            caught.append(given)
        return {name: unit(torch.cat([given[name][:, 0] for given in caught])) for name in names}


def _puts() -> dict[str, Callable[[str], str]]:
    """What puts each candidate into a text, and what merely looks like it, by name; codes are drawn at random."""
    rng = seeded("imprint")
    puts: dict[str, Callable[[str], str]] = {}
    for name, trigger in CANDIDATES.items():
        if trigger.kind == "sep":  # a wrong code begins alike
            puts[name] = lambda text: Trigger("sep", f"{rng.randrange(_CODES):03d}").put(text, rng)
        else:
            puts[name] = partial(trigger.put, rng=rng)
            puts[f"like {name}"] = partial(trigger.put_wrong, rng=rng)
    return puts


def _mean(given: Float[Tensor, "rows time in"], places: Sequence[tuple[int, int]]) -> Float[Tensor, " in"]:
    rows, times = zip(*places, strict=True)
    return unit(unit(given[list(rows), list(times)]).mean(0))
