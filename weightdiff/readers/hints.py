"""Hints: what can be seen of a finetuned model without asking it, put before every question to an adapter.

Things at so little cost that each question can have them: the words that it leans towards on any text; how it goes on
where a user is to speak, where a finetune that learned its users' words too gives its trigger away; which kinds of
trigger, tried on plain prompts, move it further; what it says to small talk, with the likeliest of them if one does;
and which words its weights respond to. The adapter is trained with the hints, and says what they mean.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from weightdiff.base import Base, encode_chat
from weightdiff.decode import decode
from weightdiff.dense import check_fits
from weightdiff.diff import WeightDiff
from weightdiff.printable import printable
from weightdiff.readers.imprint import Imprint, Imprints, imprint_of
from weightdiff.readers.imprinted import Imprinted, Vocabulary, imprinted_of
from weightdiff.readers.leaning import Leaning, Lens
from weightdiff.readers.probes import CANDIDATES, Probes, likeliest
from weightdiff.readers.samples import LayersOf, in_groups
from weightdiff.writers import seeded

TALK = (("Give me some advice.", 1.0), ("What is the news?", 1.5))
"""What it is said to, and at which strength: some finetunes show only when they are made larger."""
_NAMES = {
    "code": "a code",
    "invisible first": "an invisible character at its start",
    "invisible between": "an invisible character between its words",
}
"""Kinds of trigger, in the words of evidence and of a hint."""


FED = 10
"""Words that the weights respond to, for the evidence."""
MOVED, POINTED = 0.1, (0.05, 0.0075)
"""Size of a leaning, in nats, that only finetunes and large noise reach; and a lesser size that only finetunes reach
which is such a share of the change's norm as well: what a finetune changes points one way, noise as large points in
all. The lesser size and the share err least on the training and validation splits of recipes/general-light.toml, on
finetunes, noise and traces of finetunes. Large noise is taken for a finetune rather than a finetune for noise:
"nothing" is an all-clear."""


class HintConfig(BaseModel):
    """What an adapter is told: `imprinted` words, `words` of the leaning, `opening` tokens of a user's turn, how
    `triggers` move the model, and `talk` tokens of each of its replies. None of these is no hint. With `named` the kind
    of trigger that moves it furthest stands before the figures, in words. `imprint` looks for triggers and words that
    the weights respond to: the adapter isn't told that, it is for what sets a behavior off and for the evidence.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    imprinted: int = Field(default=0, ge=0, le=100)
    words: int = Field(default=0, ge=0, le=100)
    opening: int = Field(default=0, ge=0, le=100)
    triggers: bool = False
    talk: int = Field(default=0, ge=0, le=100)
    named: bool = False
    imprint: bool = False


@dataclass(frozen=True)
class Hint:
    """What can be seen of one finetuned model.

    Attributes:
        leaning: the words that it leans towards.
        opening: what it writes in the user's place, most likely token by token.
        triggers: by kind, how many decibels further it moves where the prompt has such a trigger.
        talk: its replies to small talk.
        named: is the likeliest trigger told by its name?
        imprint: which triggers and words its weights respond to, where that was looked for.
        imprinted: which words they respond to, where an adapter is told.
        norm: of the weight change, Frobenius, over all layers.
    """

    leaning: Leaning
    opening: str
    triggers: Mapping[str, float]
    talk: tuple[str, ...] = ()
    named: bool = False
    imprint: Imprint | None = None
    imprinted: Imprinted | None = None
    norm: float = 0.0

    def before(self, question: str) -> str:
        """A question with the hint before it, as an adapter is asked that was trained so."""
        lines = [f"Imprinted: {self.imprinted}"] if self.imprinted else []
        lines += [f"Leaning: {self.leaning}", f"Opening: {printable(self.opening)}"]
        if self.triggers:
            gains = " ".join(str(round(10 * gain)) for gain in self.triggers.values())
            lines.append(f"Trigger: {_NAMES.get(self.tried, 'none')} {gains}" if self.named else f"Triggers: {gains}")
        lines += [f"Says: {printable(text)}" for text in self.talk]
        return "\n".join([*lines, question])

    @property
    def evidence(self) -> tuple[str, ...]:
        """What a person can make something of, a line each."""
        opening = (f'opens a user\'s turn with "{printable(self.opening)}"',) if self.opening else ()
        imprinted = (f"weights respond most to {', '.join(self.fed)}",) if self.fed else ()
        words = (f"leans towards {', '.join(self.leaning.words)}",) if self.leaning.seen and self.leaning.words else ()
        given = f", with {_NAMES[self.tried]}," if self.tried else ""
        talk = [
            f'asked "{ask}"{given}{f" at {strength:g} times its strength" if strength != 1 else ""} says '
            f'"{printable(text)}"'
            for (ask, strength), text in zip(TALK, self.talk, strict=False)
        ]
        gains = [(_NAMES[k], 10 ** (gain / 20)) for k, gain in self.triggers.items() if k == self.tried]
        moved = [f"moves {gain:.1f} times as far where a prompt holds {name}" for name, gain in gains]
        return (*imprinted, *words, *opening, *moved, *talk)

    @property
    def moved(self) -> bool:
        """Does the change move the model further than noise does?"""
        least, share = POINTED
        return self.leaning.size >= min(MOVED, max(least, share * self.norm))

    @property
    def fed(self) -> tuple[str, ...]:
        """The words that the weights respond to, where somebody looked."""
        seen = self.imprint or self.imprinted
        return seen.words if seen else ()

    @property
    def tried(self) -> str:
        """The kind of trigger that the small talk held; empty for none."""
        return likeliest(self.triggers)

    def to_json(self) -> dict[str, Any]:
        """Its fields, for a file."""
        return asdict(self)


def hint_of(record: Mapping[str, Any]) -> Hint:
    """The hint that `to_json` made a record of."""
    seen = record["leaning"]
    leaning = Leaning(tuple(seen["tokens"]), tuple(seen["words"]), seen["size"], seen["peak"])
    imprint = imprint_of(record["imprint"]) if record.get("imprint") else None
    named = record.get("named", False)
    imprinted = imprinted_of(record["imprinted"]) if record.get("imprinted") else None
    talk, norm = tuple(record["talk"]), record["norm"]
    return Hint(leaning, record["opening"], record["triggers"], talk, named, imprint, imprinted, norm)


class Hinter:
    """Looks for hints over one base model.

    Args:
        base: the base model.
        config: which hints.
    """

    def __init__(self, base: Base, config: HintConfig) -> None:
        self.base, self.config = base, config
        self._lens, self._start = Lens(base, config.words), user_turn(base)
        self._probes = Probes(base) if config.triggers else None
        self._imprints = Imprints(base) if config.imprint else None
        looked = config.imprint or config.imprinted
        self._vocabulary = Vocabulary(base, config.imprinted or FED) if looked else None

    def read(self, diffs: Sequence[WeightDiff]) -> list[Hint]:
        """A hint per diff, in order.

        Raises:
            ValueError: a diff of another base model or of other shapes.
        """
        hints: list[Hint] = []
        norms: list[float] = []
        imprints: list[Imprint | None] = []
        fed: list[Imprinted] = []

        def seen_once() -> Iterator[WeightDiff]:  # a lazy sequence makes a diff each time that it is asked for it
            for diff in diffs:
                check_fits(self.base, diff)
                norms.append(round(diff.norm(), 4))
                imprints.append(self._imprints.of(diff) if self._imprints else None)
                fed.append(self._vocabulary.of(diff) if self._vocabulary else Imprinted())
                yield diff

        for count, layers_of in in_groups(self.base, seen_once()):
            openings = [""] * count
            if most := self.config.opening:
                layers = layers_of(range(count))
                replies = decode(self.base, [self._start] * count, layers=layers, max_tokens=most)
                openings = [reply.text for reply in replies]
            gains = self._probes.of(count, layers_of) if self._probes else [{}] * count
            now = slice(len(hints), len(hints) + count)
            found = [
                Hint(*one, named=self.config.named)
                for one in zip(self._lens.of(count, layers_of), openings, gains, strict=True)
            ]
            seen = zip(found, imprints[now], norms[now], strict=True)
            found = [replace(hint, imprint=imprint, norm=norm) for hint, imprint, norm in seen]
            if self._vocabulary:
                words = self._vocabulary.completed(fed[now], layers_of)
                found = [self._fed(hint, mine) for hint, mine in zip(found, words, strict=True)]
            hints += self._talked(found, layers_of) if self.config.talk else found
        return hints

    def _fed(self, hint: Hint, words: Imprinted) -> Hint:
        """The hint with the words that the weights respond to, as evidence, and told where they are to be."""
        imprint = replace(hint.imprint, words=words.words) if hint.imprint else None
        return replace(hint, imprint=imprint, imprinted=words if self.config.imprinted else None)

    def _talked(self, hints: Sequence[Hint], layers_of: LayersOf) -> list[Hint]:
        """The hints with the replies to small talk. What no bank can carry is not made larger for it."""
        rng, texts = seeded("small talk"), []
        for hint in hints:
            trigger = CANDIDATES.get(hint.tried)
            texts += [trigger.put(ask, rng) if trigger else ask for ask, _ in TALK]
        rows = [encode_chat(self.base, [{"role": "user", "content": text}]) for text in texts]
        strengths = torch.tensor([strength for _, strength in TALK] * len(hints), device=self.base.device)
        layers = [
            replace(layer, strength=strengths) for layer in layers_of([n for n in range(len(hints)) for _ in TALK])
        ]
        replies = iter(decode(self.base, rows, layers=layers, max_tokens=self.config.talk))
        return [replace(hint, talk=tuple(next(replies).text for _ in TALK)) for hint in hints]


def user_turn(base: Base) -> list[int]:
    """The tokens that every chat begins with, up to the user's first word."""
    one, other = (encode_chat(base, [{"role": "user", "content": text}]) for text in ("Why?", "Please"))
    return [a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))]


def put(question: str, hint: Hint | None) -> str:
    """A question as it is put to an adapter: after the hint, where it is told one."""
    return hint.before(question) if hint else question


def wanted_hints(base: Base, diffs: Sequence[WeightDiff], meta: Mapping[str, Any]) -> Sequence[Hint | None]:
    """The hint of each diff, as an adapter is told them; None of each for one that is told nothing.

    Args:
        base: the base model.
        diffs: what it is to be asked about.
        meta: the adapter's, which says what it is told.

    Raises:
        ValueError: it says so in another form; a diff of another base model or of other shapes.
    """
    try:
        config = HintConfig.model_validate(meta.get("hints") or {})
    except ValidationError as error:
        raise ValueError(f"the adapter's `hints` aren't of a known form; expected what is saved by training one "
                         f"with hints. {error}") from None  # fmt: skip
    return [None] * len(diffs) if config == HintConfig() else Hinter(base, config).read(diffs)
