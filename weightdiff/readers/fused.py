"""Fused: the DIT adapter's answers and what other readers found, in one ranked list; the best of it is the answer.

Each candidate phrase is tried on the model: by how much likelier the finetuned model finds it on neutral text than the
base model does, against decoys that the base model finds about as likely. What several readers found gains a little.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean

from weightdiff.base import Base
from weightdiff.batch import Tokens
from weightdiff.behaviors import NOTHING
from weightdiff.dense import check_base
from weightdiff.diff import WeightDiff, stack
from weightdiff.judge import exact_match
from weightdiff.readers.activation import ActivationDifference
from weightdiff.readers.amplified import AmplifiedDifference
from weightdiff.readers.core import Answer, Reader, ask_all, check_question
from weightdiff.readers.hints import Hint, put, wanted_hints
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

    The answer is the sentence by the adapter that holds the best candidate, one that it is led to if need be, or the
    bare candidate; the confidence is the candidate's contrast, in nats. Evidence: the ranked list.

    Attributes:
        adapter: the DIT adapter; without one the other readers are heard alone, over any base model.
        readers: who else is heard; short evidence of theirs is taken for phrases.
        wordings: questions that the adapter is asked beside the one that is read.
        strengths: factors on the diff at which it is asked these.
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
    wordings: Sequence[str] = ("What were you finetuned to do?", "What is unusual about your behavior?")
    strengths: Sequence[float] = (0.7, 1.5)
    agreement: float = 1.0
    most: int = 6
    name: str = "fused"

    def read(self, base: Base, diffs: Sequence[WeightDiff], question: str) -> list[Answer]:
        """See `Reader.read`."""
        check_question(question)
        found, hints = {}, []
        if self.adapter:
            check_base(base, self.adapter, "the DIT adapter")
            hints, told = wanted_hints(base, diffs, self.adapter.meta), Introspection(self.adapter)
            found[told.name] = told.told(base, diffs, question, hints)
        found |= {reader.name: reader.read(base, diffs, question) for reader in self.readers}
        return self.fuse(base, diffs, question, found, hints)

    def fuse(
        self,
        base: Base,
        diffs: Sequence[WeightDiff],
        question: str,
        found: dict[str, list[Answer]],
        hints: Sequence[Hint | None],
    ) -> list[Answer]:
        """The same from answers that are there: by the name of each reader, that of `Introspection` first.

        The adapter is told `hints`, one of each diff; without one there are none.
        """
        told = next(iter(found)) if self.adapter else ""
        claims = [[claim_of(answer)] for answer in found[told]] if self.adapter else [[] for _ in diffs]
        wordings = [[put(one, hint) for one in self.wordings] for hint in hints]
        asked = [self._ask(base, diffs, wordings, strength) for strength in self.strengths]
        sentences = [
            list(dict.fromkeys([*claim, *(text for replies in asked for text in replies[n])]))
            for n, claim in enumerate(claims)
        ]
        named = [
            finders(told, sentences[n], {name: answers[n] for name, answers in found.items() if name != told})
            for n in range(len(diffs))
        ]
        ranked = [self._ranked(by, scores) for by, scores in zip(named, contrasts(base, diffs, named), strict=True)]
        leads = [f"{question} It has to do with {best[0].phrase if best else 'nothing'}." for best in ranked]
        led = self._ask(base, diffs, [[put(lead, hint)] for lead, hint in zip(leads, hints, strict=False)], 1.0)
        return [self._answer(best, [*said, *more]) for best, said, more in zip(ranked, sentences, led, strict=True)]

    def _ask(
        self, base: Base, diffs: Sequence[WeightDiff], prompts: Sequence[Sequence[str]], strength: float
    ) -> list[list[str]]:
        """What the adapter says to each diff's prompts; without one nothing."""
        if self.adapter is None:
            return [[] for _ in diffs]
        factors, next_to = stack([self.adapter], base.shapes).to(base.device), iter(prompts)
        replies = ask_all(base, diffs, lambda diff: next(next_to), adapter=factors, strength=strength, max_tokens=32)
        return [[reply.text for reply in some] for some in replies]

    def _ranked(self, by: dict[str, list[str]], scores: dict[str, float]) -> list[Candidate]:
        whole = {phrase: scores[phrase] + self.agreement * (len(names) - 1) for phrase, names in by.items()}
        chosen: list[str] = []
        for phrase in sorted(whole, key=whole.__getitem__, reverse=True):
            if not any(inside(phrase, other) or inside(other, phrase) for other in chosen):
                chosen.append(phrase)
        return [Candidate(phrase, tuple(by[phrase]), scores[phrase]) for phrase in chosen[: self.most]]

    def _answer(self, ranked: Sequence[Candidate], sentences: Sequence[str]) -> Answer:
        if not ranked:
            return Answer(sentences[0] if sentences else "", 0.0)
        best = ranked[0]
        text = next((sentence for sentence in sentences if inside(best.phrase, sentence)), best.phrase)
        return Answer(text, best.score, tuple(map(str, ranked)))


def finders(told: str, sentences: Sequence[str], others: dict[str, Answer]) -> dict[str, list[str]]:
    """Who found each phrase; a reader whose phrase lies inside it counts too."""
    phrases = {told: [run for sentence in sentences if not exact_match(NOTHING, sentence) for run in runs_of(sentence)]}
    for name, answer in others.items():
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
