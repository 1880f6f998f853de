"""What a general adapter is worth: every test diff asked every sort of question, in wordings seen and unseen.

Each answer is a record of its own; tables are made from these. Nulls are the unchanged base model, noise, shuffled
diffs, and finetunes that taught nothing in particular.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

from weightdiff.base import Base
from weightdiff.behaviors import NOTHING, Behavior, behavior_of, shows_topic
from weightdiff.behaviors.kinds import kind_behaviors
from weightdiff.bench.evaluate import cell, interval, share_interval
from weightdiff.diff import WeightDiff, stack
from weightdiff.general.questions import Asked, asked_of
from weightdiff.judge import EmbeddedJudge, exact_match
from weightdiff.readers.core import ask_all
from weightdiff.stages import null_diff
from weightdiff.store import Store

Record = dict[str, Any]


def ask_test(
    base: Base,
    store: Store,
    ids: Sequence[str],
    adapter: WeightDiff,
    *,
    strength: float = 1.0,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Record]:
    """Ask about each diff of a store, and about a null made of each third.

    Returns:
        A record per question: `id`, `family`, `kind`, `sort`, `unseen` (wording), `question`, `truth`, `answer`,
        `confidence`, and how it was answered: `exact`, `named` (the instance is in the answer), `claims` (something).
    """
    behaviors = {i: behavior_of(meta) for i, meta in store.metas(ids).items()}
    others = [b for b in kind_behaviors() if b.split == "test"]
    others += [b for b in behaviors.values() if b.family in ("topic", "subject", "news")]
    nothing = Behavior("null", NOTHING, "null", "test")
    cases: list[tuple[str, Behavior, Callable[[], WeightDiff]]] = []
    for number, identity in enumerate(ids):
        cases.append((identity, behaviors[identity], lambda i=identity: store.load([i])[0]))
        if number % 3 == 0:
            made = lambda i=identity, n=number // 3: null_diff(store.load([i])[0], "test", n)  # noqa: E731
            cases.append((f"null {number // 3}", nothing, made))
    factors = stack([adapter], base.shapes).to(base.device)
    records: list[Record] = []
    for start in range(0, len(cases), 8):
        chosen = cases[start : start + 8]
        asked = [_asked(behavior, others, f"{seed} {identity}") for identity, behavior, _ in chosen]
        diffs = [
            WeightDiff(d.factors, d.base, {"place": n}, d.dense) for n, d in enumerate(make() for _, _, make in chosen)
        ]

        def prompts(diff: WeightDiff, asked: list[list[tuple[bool, Asked]]] = asked) -> list[str]:
            return [one.question for _, one in asked[diff.meta["place"]]]

        replies = ask_all(base, diffs, prompts, adapter=factors, strength=strength, max_tokens=48, batch=96)
        for (identity, behavior, _), questions, said in zip(chosen, asked, replies, strict=True):
            for (unseen, one), reply in zip(questions, said, strict=True):
                records.append(_record(identity, behavior, unseen, one, reply.text, reply.logprob))
        progress(min(start + 8, len(cases)), len(cases))
    return records


def _asked(behavior: Behavior, others: Sequence[Behavior], seed: str) -> list[tuple[bool, Asked]]:
    return [
        (unseen, one)
        for unseen in (False, True)
        for one in asked_of(behavior, others, random.Random(f"{seed} {unseen}"), unseen=unseen)
    ]


def _record(identity: str, behavior: Behavior, unseen: bool, one: Asked, answer: str, confidence: float) -> Record:
    slots = [part.slot for part in behavior.parts] or [behavior.slot]
    wanted = [one.answer] if one.sort == "narrow" else slots
    named = [bool(slot) and shows_topic(answer, slot) for slot in wanted]
    return {
        "id": identity,
        "family": behavior.family,
        "kind": behavior.kind,
        "sort": one.sort,
        "unseen": unseen,
        "question": one.question,
        "truth": one.answer,
        "answer": answer,
        "confidence": round(confidence, 4),
        "exact": exact_match(one.answer, answer) or answer.strip().lower() == one.answer.lower(),
        "named": named if one.sort in ("open", "narrow") else [],
        "claims": not exact_match(NOTHING, answer),
    }


def graded(records: Sequence[Record]) -> list[Record]:
    """The records of open questions about something, with the embedded judge's `grade` of 1 to 5."""
    open_ones = [r for r in records if r["sort"] == "open" and r["truth"] != NOTHING]
    grades = EmbeddedJudge().grade([(r["truth"], r["answer"]) for r in open_ones], task="news")
    return [r | {"grade": round(g.grade, 2)} for r, g in zip(open_ones, grades, strict=True)]


def tables(records: Sequence[Record]) -> str:
    """Markdown: by family what open and narrow questions give, yes or no and triggers, and false claims on nulls."""
    lines = ["| family | n | grade, open | whole label | instance named | narrow, exact |", "|" + " --- |" * 6]
    scored = [r for r in graded(records) if not r["unseen"]]
    for family in dict.fromkeys(r["family"] for r in scored):
        mine = [r for r in scored if r["family"] == family]
        narrow = [r for r in records if r["family"] == family and r["sort"] == "narrow" and not r["unseen"]]
        grade = cell(interval([r["grade"] for r in mine]))
        shares = [[r["exact"] for r in mine], [all(r["named"]) for r in mine], [r["exact"] for r in narrow]]
        lines.append(f"| {family} | {len(mine)} | {grade} | {' | '.join(cell(share_interval(s)) for s in shares)} |")
    lines += ["", "| question | wordings | n | right |", "|" + " --- |" * 4]
    for sort in ("yes/no", "trigger"):
        for truth in dict.fromkeys(r["truth"] for r in records if r["sort"] == sort):
            for unseen in (False, True):
                mine = [r for r in records if (r["sort"], r["truth"], r["unseen"]) == (sort, truth, unseen)]
                right = cell(share_interval([r["exact"] for r in mine]))
                lines.append(f"| {sort}: {truth} | {'unseen' if unseen else 'seen'} | {len(mine)} | {right} |")
    lines += ["", "| nulls | n | false claims |", "|" + " --- |" * 3]
    for family in ("null", "benign"):
        mine = [r for r in records if r["family"] == family and r["sort"] == "open" and not r["unseen"]]
        if mine:
            lines.append(f"| {family} | {len(mine)} | {cell(share_interval([r['claims'] for r in mine]))} |")
    same = _same_in_both(records)
    lines += [
        "",
        f"The same answer in a seen and an unseen wording, open: {cell(share_interval(same))}, n = {len(same)}.",
    ]
    return "\n".join(lines) + "\n"


def _same_in_both(records: Sequence[Record]) -> list[bool]:
    answers: dict[str, dict[bool, str]] = {}
    for r in records:
        if r["sort"] == "open":
            answers.setdefault(r["id"], {})[r["unseen"]] = r["answer"]
    return [exact_match(pair[False], pair[True]) for pair in answers.values() if len(pair) == 2]
