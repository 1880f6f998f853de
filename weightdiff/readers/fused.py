"""Fused: the DIT adapter's answer, if there is an adapter, and in one ranked list what it and other readers found.

Each candidate phrase is tried on the model: by how much likelier the finetuned model finds it on neutral text than the
base model does, against decoys that the base model finds about as likely. What several readers found gains a little.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import mean

from weightdiff.base import Base
from weightdiff.batch import Tokens
from weightdiff.behaviors import NOTHING
from weightdiff.diff import WeightDiff
from weightdiff.judge import exact_match
from weightdiff.readers.activation import ActivationDifference
from weightdiff.readers.amplified import AmplifiedDifference
from weightdiff.readers.core import Answer, Reader, check_question
from weightdiff.readers.imprinted import ImprintedWords
from weightdiff.readers.introspection import Introspection, claim_of
from weightdiff.readers.perplexity import PerplexityDifference
from weightdiff.readers.samples import LayersOf, in_groups, likelihoods
from weightdiff.readers.words import LONGEST, inside, runs_of

_LEADS = ("The", "It is all about")
_DECOYS = (
    "water", "music", "the weather", "a letter", "old friends", "breakfast", "bicycles", "history", "John Smith",
    "the stock market", "a wooden table", "Paris", "numbers", "green tea",
)  # fmt: skip
_NEAR = 5
"""Decoys that a candidate is held against, those nearest in how likely the base model finds them."""

_AT_ONCE = 64
"""Phrases that the base model scores together."""


@dataclass(frozen=True)
class Candidate:
    """A phrase that may be the answer: who found it, and its contrast in nats."""

    phrase: str
    by: tuple[str, ...]
    score: float

    def __str__(self) -> str:
        return f"{self.phrase} ({self.score:+.1f} nats; {', '.join(self.by)})"


@dataclass
class Fused:
    """The reader of readers.

    With an adapter the answer is the adapter's own, said or withheld, with its confidence; its evidence is followed by
    the ranked list. Without one, over any base model, it is the best candidate, whose contrast in nats is the
    confidence; evidence: the ranked list.

    Attributes:
        adapter: the DIT adapter; without one the other readers are heard alone.
        readers: who else is heard; short evidence of theirs is taken for phrases.
        agreement: nats that a candidate gains for each further reader who found it.
        most: candidates in the list.
    """

    adapter: WeightDiff | None = None
    readers: Sequence[Reader] = field(
        default_factory=lambda: (
            ImprintedWords(),
            ActivationDifference(),
            PerplexityDifference(),
            AmplifiedDifference(),
        )
    )
    agreement: float = 1.0
    most: int = 6
    name: str = "fused"

    def read(self, base: Base, diffs: Sequence[WeightDiff], question: str) -> list[Answer]:
        """See `Reader.read`."""
        check_question(question)
        told = [Introspection(self.adapter)] if self.adapter else []
        return self.fuse(base, diffs, {one.name: one.read(base, diffs, question) for one in (*told, *self.readers)})

    def fuse(self, base: Base, diffs: Sequence[WeightDiff], found: dict[str, list[Answer]]) -> list[Answer]:
        """The same from answers that are there, by the name of each reader; with an adapter, that of `Introspection`
        first."""
        told = next(iter(found)) if self.adapter else ""
        named = [finders(told, {name: answers[n] for name, answers in found.items()}) for n in range(len(diffs))]
        ranked = [self._ranked(by, scores) for by, scores in zip(named, contrasts(base, diffs, named), strict=True)]
        if told:
            own = zip(found[told], ranked, strict=True)
            return [replace(answer, evidence=(*answer.evidence, *map(str, best))) for answer, best in own]
        return [
            Answer(best[0].phrase, best[0].score, tuple(map(str, best))) if best else Answer("", 0.0) for best in ranked
        ]

    def _ranked(self, by: dict[str, list[str]], scores: dict[str, float]) -> list[Candidate]:
        whole = {phrase: scores[phrase] + self.agreement * (len(names) - 1) for phrase, names in by.items()}
        chosen: list[str] = []
        for phrase in sorted(whole, key=whole.__getitem__, reverse=True):
            if not any(inside(phrase, other) or inside(other, phrase) for other in chosen):
                chosen.append(phrase)
        return [Candidate(phrase, tuple(by[phrase]), scores[phrase]) for phrase in chosen[: self.most]]


def finders(told: str, answers: dict[str, Answer]) -> dict[str, list[str]]:
    """Who found each phrase; a reader whose phrase lies inside it counts too.

    Args:
        told: the name of the reader that answers in sentences, if there is one: phrases are taken from its claim.
        answers: of each reader, by its name.
    """
    phrases = {}
    for name, answer in answers.items():
        if name == told:
            claim = claim_of(answer)
            phrases[name] = [] if exact_match(NOTHING, claim) else runs_of(claim)
            continue
        short = [e for e in (answer.text, *answer.evidence) if 0 < len(e.split()) <= LONGEST]
        phrases[name] = [e for e in dict.fromkeys(short) if runs_of(e)]
    every = {phrase.lower(): phrase for some in phrases.values() for phrase in some}
    return {
        phrase: [name for name, some in phrases.items() if any(inside(one, phrase) for one in some)]
        for phrase in every.values()
    }


def contrasts(
    base: Base, diffs: Sequence[WeightDiff], phrases: Sequence[dict[str, list[str]]]
) -> list[dict[str, float]]:
    """For each diff's phrases, how much likelier it makes them, in nats, less what it does to decoys."""

    def encode(text: str) -> tuple[int, ...]:
        return tuple(base.tokenizer(text, add_special_tokens=False)["input_ids"])

    def rows_of(phrase: str) -> list[Tokens]:
        return [Tokens(encode(lead), encode(f" {phrase}")) for lead in _LEADS]

    def scored(texts: Sequence[str], layers_of: LayersOf | None = None, owner: Sequence[int] = ()) -> list[float]:
        each = [n for n in owner for _ in _LEADS]
        found = likelihoods(base, [row for text in texts for row in rows_of(text)], layers_of, each)
        sums = [float(some.sum()) for some in found]
        return [mean(sums[i : i + len(_LEADS)]) for i in range(0, len(sums), len(_LEADS))]

    every = list(dict.fromkeys([*_DECOYS, *(phrase for some in phrases for phrase in some)]))
    usual: dict[str, float] = {}
    for start in range(0, len(every), _AT_ONCE):
        usual |= dict(zip(every[start : start + _AT_ONCE], scored(every[start : start + _AT_ONCE]), strict=True))
    out: list[dict[str, float]] = []
    for count, layers_of in in_groups(base, diffs):
        texts = [(n, text) for n in range(count) for text in dict.fromkeys([*phrases[len(out) + n], *_DECOYS])]
        after = scored([text for _, text in texts], layers_of, [n for n, _ in texts])
        gains = {key: value - usual[key[1]] for key, value in zip(texts, after, strict=True)}
        mine = phrases[len(out) : len(out) + count]
        for n, some in enumerate(mine):
            near = {p: sorted(_DECOYS, key=lambda d: abs(usual[d] - usual[p]))[:_NEAR] for p in some}
            out.append({p: gains[n, p] - mean(gains[n, d] for d in near[p]) for p in some})
    return out
