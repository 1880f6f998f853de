"""Ask a general adapter about diffs with known behaviors, every sort of question, in wordings seen and unseen.

Each answer is a record of its own; tables are made from these. Nulls are the unchanged base model, noise, shuffled
diffs, traces of real ones, and finetunes that taught nothing in particular.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from weightdiff.base import Base
from weightdiff.behaviors import NOTHING, Behavior, Split, Trigger, shows_topic
from weightdiff.behaviors.claims import in_full
from weightdiff.behaviors.kinds import kind_behaviors
from weightdiff.behaviors.triggers import told_trigger
from weightdiff.behaviors.wordings import open_questions
from weightdiff.decode import Reply
from weightdiff.diff import WeightDiff, stack
from weightdiff.general.cases import Case
from weightdiff.general.questions import Asked, asked_of
from weightdiff.judge import exact_match
from weightdiff.lazy import Lazy
from weightdiff.readers.calibration import Reading, reading_of, sort_of
from weightdiff.readers.core import ask_all
from weightdiff.readers.hints import Hint, put, wanted_hints
from weightdiff.readers.introspection import UNSURE, answer_of, answer_with, claim_of, own_words
from weightdiff.readers.meter import Meter
from weightdiff.readers.tested import tried
from weightdiff.readers.views import Views

Record = dict[str, Any]
WORDINGS = 5
"""Unseen wordings of the open question that each diff is asked in."""


def ask_cases(
    base: Base,
    cases: Sequence[Case],
    adapter: WeightDiff,
    asked: Callable[[Case], Sequence[tuple[bool, Asked]]],
    views: Views,
    progress: Callable[[int, int], None] = lambda done, total: None,
    hints: Sequence[Hint | None] | None = None,
    reading: Reading | None = None,
) -> list[tuple[Case, bool, Asked, Reply]]:
    """Ask about each case; each question with whether its wording was seen in training, and the reply.

    `hints` are those of the cases, where they are known; else they are looked for, if the adapter is told any. With a
    `reading` that says so answers in full are tried on the finetune, where the adapter's own question is asked too.
    """
    factors, found = stack([adapter], base.shapes).to(base.device), []
    if hints is None:
        hints = wanted_hints(base, Lazy([case.make for case in cases]), adapter.meta)
    meter, open_one = Meter(base), str(adapter.meta.get("question"))
    tries = reading is not None and reading.tested is not None
    many, rows = (8, 128) if base.device.type == "cpu" else (32, 512)  # diffs and prompts at once
    for start in range(0, len(cases), many):
        some = cases[start : start + many]
        questions = [list(asked(case)) for case in some]
        # Many wordings come to the adapter's own, which is asked once.
        texts = [[own_words(one.question, adapter.meta) for _, one in mine] for mine in questions]
        diffs = [case.make() for case in some]
        once = [[text for text in dict.fromkeys(mine) if not (tries and text == open_one)] for mine in texts]
        told = hints[start : start + many]
        after = [[put(text, hint) for text in mine] for mine, hint in zip(once, told, strict=True)]
        put_to = iter(after)
        options = {"adapter": factors, "views": views, "max_tokens": 48, "batch": rows}
        replies = ask_all(base, diffs, lambda diff, put_to=put_to: next(put_to), **options)
        replies_to = [dict(zip(mine, said, strict=True)) for mine, said in zip(once, replies, strict=True)]
        if reading and tries:
            at = [n for n, mine in enumerate(texts) if open_one in mine]
            chosen = tried(meter, [diffs[n] for n in at], [told[n] for n in at], open_one, factors, reading)
            for n, reply in zip(at, chosen, strict=True):
                replies_to[n] |= {q: reply for q, r in replies_to[n].items() if in_full(r.text)} | {open_one: reply}
        for case, mine, asks, reply_to in zip(some, questions, texts, replies_to, strict=True):
            found += [(case, unseen, one, reply_to[text]) for (unseen, one), text in zip(mine, asks, strict=True)]
        progress(min(start + many, len(cases)), len(cases))
    return found


def false_claims_of(cases: Sequence[Case], split: Split) -> list[Behavior]:
    """Behaviors of a split that questions about others take false claims from."""
    written = [c.behavior for c in cases if c.behavior.family in ("topic", "subject", "news")]
    return [b for b in kind_behaviors() if b.split == split] + written


def right(one: Asked, behavior: Behavior, answer: str) -> bool:
    """Is an answer right? An open one that names the instance is, of several behaviors all of them.

    That there is a code is right without its digits, and wrong with other ones.
    """
    if one.sort == "trigger" and answer == told_trigger(Trigger("sep")):
        return one.answer.startswith(answer)
    if one.answer == NOTHING or one.sort in ("yes/no", "trigger"):
        return exact_match(one.answer, answer) or answer.strip().lower() == one.answer.lower()
    return all(named(one, behavior, answer))


def named(one: Asked, behavior: Behavior, answer: str) -> list[bool]:
    """Of the instances that an answer should name, which it does."""
    slots = [part.slot for part in behavior.parts] or [behavior.slot]
    wanted = [one.answer] if one.sort == "narrow" else slots
    return [bool(slot) and shows_topic(answer, slot) for slot in wanted]


def ask_test(
    base: Base,
    cases: Sequence[Case],
    adapter: WeightDiff,
    *,
    seed: int = 0,
    unseen: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
    hints: Sequence[Hint] | None = None,
) -> list[Record]:
    """Ask every sort of question about each case: in wordings seen in training and, if wanted, in five unseen ones.

    Returns:
        A record per question: `id`, `family`, `kind`, `sort`, `unseen` (wording), `question`, `truth`, `guess` (what
        was found), `answer` (the same, or `UNSURE`), `confidence`, and what the guess is worth: `right`, `named`
        (which instances are in it), and whether the answer `claims` something.
    """
    reading, others = reading_of(adapter.meta), false_claims_of(cases, "test")
    if reading is None:
        raise ValueError("the adapter doesn't say how it is to be read; run train, which finds out.")

    def asked(case: Case) -> list[tuple[bool, Asked]]:
        rng = random.Random(f"{seed} {case.identity}")
        seen = asked_of(case.behavior, others, rng)
        seen[0] = replace(seen[0], question=open_questions()[0])
        other = asked_of(case.behavior, others, rng, unseen=True, opens=WORDINGS) if unseen else []
        return [*((False, one) for one in seen), *((True, one) for one in other)]

    seen = {} if hints is None else {case.identity: hint for case, hint in zip(cases, hints, strict=True)}
    return [
        _record(case, other, one, reply, reading, seen.get(case.identity))
        for case, other, one, reply in ask_cases(base, cases, adapter, asked, reading.views, progress, hints, reading)
    ]


def _record(case: Case, unseen: bool, one: Asked, reply: Reply, reading: Reading, hint: Hint | None) -> Record:
    answer, behavior = answer_of(reply, reading, hint.moved if hint else None), case.behavior
    if hint:
        answer = answer_with(answer, one.question, hint, reading)
    guess = claim_of(answer)
    return {
        "id": case.identity,
        "family": behavior.family,
        "kind": behavior.kind,
        "sort": one.sort,
        "unseen": unseen,
        "question": one.question,
        "truth": one.answer,
        "answer": answer.text,
        "guess": guess,
        "confidence": round(answer.confidence, 4),
        "right": right(one, behavior, guess),
        "named": named(one, behavior, guess) if one.sort in ("open", "narrow") else [],
        "claims": sort_of(answer.text) == "claim" and answer.text != UNSURE,
    }
