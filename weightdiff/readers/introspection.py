"""Introspection: the finetuned model itself, under the DIT adapter, answers how it was changed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from weightdiff.base import Base
from weightdiff.behaviors.claims import in_full
from weightdiff.decode import Reply
from weightdiff.dense import check_base
from weightdiff.diff import WeightDiff, is_adapter, stack
from weightdiff.lazy import Lazy
from weightdiff.printable import times
from weightdiff.readers.calibration import Reading, reading_of, sort_of
from weightdiff.readers.core import Answer, ask_all, check_question
from weightdiff.readers.hints import Hint, put, wanted_hints
from weightdiff.readers.meter import Meter
from weightdiff.readers.routing import question_sort
from weightdiff.readers.tested import tried
from weightdiff.readers.triggers import told

UNSURE = "nothing that can be named with confidence"
"""The answer instead of a claim that is too likely wrong."""
WITHHELD = "unsure: "
"""What stands before a claim that isn't made, in the evidence."""


@dataclass
class Introspection:
    """The DIT reader.

    An adapter whose `meta` says so is told, before the question, what can be seen of the finetuned model without it;
    that is evidence too. An open question is put to it in its own words, whatever the user's; and what sets a behavior
    off is told by the imprint, where the adapter's `meta` says what that is worth.
    One whose `meta` says how it is to be read is read at several strengths in contrast with the base model; its
    answers' confidence is then the probability that they are right. Where it says so too, several answers to an open
    question are tried on the finetune (see `tested`). A claim that is too likely wrong is not made, nor one in full
    about a finetune that moves the model no further than noise does: the answer is `UNSURE`, and the claim stands in
    its evidence. So is it where it isn't sure enough that nothing changed, or the imprint shows a trigger. Of other
    adapters the confidence is the mean log-probability of the answer's tokens.

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
        check_reads(self.adapter)
        hints = wanted_hints(base, diffs, self.adapter.meta)
        adapter, reading = stack([self.adapter], base.shapes).to(base.device), reading_of(self.adapter.meta)
        asks, own = own_words(question, self.adapter.meta), str(self.adapter.meta.get("question"))
        tries, said, at = reading is not None and reading.tested is not None, {}, range(len(diffs))
        if not tries or asks != own:
            prompts = iter([[put(asks, hint)] for hint in hints])
            replies = ask_all(
                base, diffs, lambda diff: next(prompts), adapter=adapter, strength=self.strength,
                views=reading.views if reading else None, max_tokens=self.max_tokens,
            )  # fmt: skip
            said = {n: reply for n, (reply,) in enumerate(replies)}
            # What is answered in full was understood as an open question, in words that nobody knew to be one.
            at = [n for n in at if in_full(said[n].text)]
        if reading is not None and tries:
            some = Lazy([partial(diffs.__getitem__, n) for n in at])
            again = tried(Meter(base), some, [hints[n] for n in at], own, adapter, reading, self.max_tokens)
            said |= zip(at, again, strict=True)
        return [self._answer(said[n], question, hint, reading) for n, hint in enumerate(hints)]

    def _answer(self, reply: Reply, question: str, hint: Hint | None, reading: Reading | None) -> Answer:
        if hint is None:
            return answer_of(reply, reading)
        return answer_with(answer_of(reply, reading, hint.moved), question, hint, reading)


def check_reads(adapter: WeightDiff) -> None:
    """Raise a ValueError where what is given as an adapter is a finetune of a family, made to be asked about."""
    if "family" in adapter.meta and not is_adapter(adapter):
        raise ValueError(
            f"what is given as the DIT adapter is a finetune itself ({str(adapter.meta.get('label'))!r}). Expected an "
            "adapter that was trained to report changes: a shipped one, or one that `weightdiff train` made."
        )


def own_words(question: str, meta: Mapping[str, Any]) -> str:
    """A question as an adapter is asked it: an open one in its own words, if it is one that knows all sorts."""
    own = str(meta.get("question") or question)
    return own if "hints" in meta and question != own and question_sort(question) == "open" else question


_STRANGE = "the question doesn't seem to be about the finetune; the confidence is that of answers to questions that are"


def answer_of(reply: Reply, reading: Reading | None, moved: bool | None = None) -> Answer:
    """What a reply is worth as an answer; `moved` is its hint's, None where nobody looked."""
    if reading is None:
        return Answer(reply.text, reply.logprob)
    confidence, sort = reading.probability(reply, bool(moved)), sort_of(reply.text)
    text, gains = reply.told, reply.said or ((reply.text, reply.gained),)
    named = "it" if len(gains) == 1 else "that {}"
    evidence = tuple(f"texts that would show {named.format(t)} are {times(g)} as likely" for t, g in gains if g)
    if reply.said:
        evidence = (*evidence, f"the adapter by itself would have said: {reply.text}")
    still = moved is False and in_full(reply.text)
    if still or confidence < {"claim": reading.threshold, "nothing": reading.least}.get(sort, 0.0):
        return Answer(UNSURE, confidence, (f"{WITHHELD}{text}", *evidence))
    return Answer(text, confidence, evidence)


def answer_with(answer: Answer, question: str, hint: Hint, reading: Reading | None) -> Answer:
    """The answer with what a hint shows: the imprint says what sets a behavior off, and doubts that nothing changed."""
    seen = told(hint, reading.triggers) if reading and reading.triggers else None
    if seen and question_sort(question) == "trigger":
        answer = Answer(seen.text, seen.probability)
    elif seen and seen.trigger and sort_of(answer.text) == "nothing":
        answer = replace(answer, text=UNSURE, evidence=(f"{WITHHELD}{answer.text}",))
    found = seen.trigger if seen and seen.usable else None
    evidence = (*answer.evidence, *(seen.evidence if seen else ()), *hint.evidence)
    if question_sort(question) == "other":
        evidence = (*evidence, _STRANGE)
    return replace(answer, evidence=evidence, trigger=found)


def claim_of(answer: Answer) -> str:
    """What the adapter would say, sure of it or not."""
    return answer.evidence[0].removeprefix(WITHHELD) if answer.text == UNSURE else answer.text
