"""Introspection: the finetuned model itself, under the DIT adapter, answers how it was changed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from weightdiff.base import Base
from weightdiff.decode import Reply
from weightdiff.dense import check_base
from weightdiff.diff import WeightDiff, stack
from weightdiff.readers.calibration import Reading, reading_of, sort_of
from weightdiff.readers.core import Answer, ask_all, check_question
from weightdiff.readers.hints import Hint, telling_of

UNSURE = "nothing that can be named with confidence"
"""The answer instead of a claim that is too likely wrong."""
_WITHHELD = "unsure: "


@dataclass
class Introspection:
    """The DIT reader.

    An adapter whose `meta` says so is told, before the question, what can be seen of the finetuned model without it;
    that is evidence too.
    One whose `meta` says how it is to be read is read at several strengths in contrast with the base model; its
    answers' confidence is then the probability that they are right, and a claim that is too likely wrong is not made:
    the answer is `UNSURE`, and the claim stands in its evidence. So is it where the answer denies what a hint shows. Of
    other adapters the confidence is the mean log-probability of the answer's tokens.

    Attributes:
        adapter: the DIT adapter.
        strength: how much of the diff is laid on; 1 is the finetuned model itself. Not used where the adapter says.
        max_tokens: length of an answer; a story's summary needs more than a topic's name.
    """

    adapter: WeightDiff
    strength: float = 1.0
    max_tokens: int = 48
    name: str = "DIT"

    def read(self, base: Base, diffs: Sequence[WeightDiff], question: str) -> list[Answer]:
        """See `Reader.read`."""
        check_question(question)
        check_base(base, self.adapter, "the DIT adapter")
        adapter, reading = stack([self.adapter], base.shapes).to(base.device), reading_of(self.adapter.meta)
        views = reading.views if reading else None
        hints: list[Hint] = []
        tell = telling_of(base, self.adapter.meta, hints.append)
        replies = ask_all(
            base, diffs, lambda diff: tell(diff, [question]), adapter=adapter, strength=self.strength, views=views,
            max_tokens=self.max_tokens,
        )  # fmt: skip
        answers = [answer_of(reply, reading) for (reply,) in replies]
        if not hints:
            return answers
        doubted = [_doubted(a, hint) for a, hint in zip(answers, hints, strict=True)]
        return [replace(a, evidence=a.evidence + hint.evidence) for a, hint in zip(doubted, hints, strict=True)]


def answer_of(reply: Reply, reading: Reading | None) -> Answer:
    """What a reply is worth as an answer."""
    if reading is None:
        return Answer(reply.text, reply.logprob)
    confidence = reading.probability(reply)
    if sort_of(reply.text) == "claim" and confidence < reading.threshold:
        return Answer(UNSURE, confidence, (f"{_WITHHELD}{reply.text}",))
    return Answer(reply.text, confidence)


_MOVED = 0.1
"""Size of a leaning, in nats, that only finetunes reach; of noise and of traces it is a fifth of that."""


def _doubted(answer: Answer, hint: Hint) -> Answer:
    """The answer; but that nothing changed, or that nothing sets it off, isn't said where a trigger moves the model."""
    denies = sort_of(answer.text) == "nothing" or answer.text.lower().startswith("no, ")
    if not (denies and hint.tried and hint.leaning.size >= _MOVED):
        return answer
    return replace(answer, text=UNSURE, evidence=(f"{_WITHHELD}{answer.text}",))


def claim_of(answer: Answer) -> str:
    """What the adapter would say, sure of it or not."""
    return answer.evidence[0].removeprefix(_WITHHELD) if answer.text == UNSURE else answer.text
