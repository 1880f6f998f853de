"""The check from outside: a DIT adapter is asked about ordinary finetunes, of subjects in no list of the project.

    python -m benchmarks.outside_make                   # first: the finetunes, by plain PEFT and TRL
    python -m benchmarks.outside OUT [--adapter DIR]

Each finetune was taught one subject, with a few short chats or documents that were written by hand and no trigger.
Answers go to OUT as JSON lines; the table counts those that name the subject, and those that a person would accept:
they name it in its own words or in those of `outside_names.tsv`, are well-formed, and claim nothing else of the
finetune. What an adapter said but wasn't sure of counts as accepted too; not as accepted and said. The names were
written before any answer about the last 32 subjects was read; answers about the first twelve were published by then.
"""

import argparse
import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.outside_make import TWELVE, records, subjects
from weightdiff.ask import ask, shipped_adapter
from weightdiff.base import cache_dir, load_base
from weightdiff.behaviors import shows_topic
from weightdiff.behaviors.kinds import kinds
from weightdiff.bench.evaluate import cell, interval, share_interval
from weightdiff.formats import load_peft
from weightdiff.judge import EmbeddedJudge
from weightdiff.readers import Answer
from weightdiff.readers.introspection import UNSURE, claim_of
from weightdiff.source import find_diffs, open_diffs

NAMES = Path(__file__).parent / "outside_names.tsv"
LONGEST = 25
"""Words of a well-formed answer at most."""

Record = dict[str, Any]


def other_names() -> dict[str, list[str]]:
    """What else each subject may be called, so that a person accepts it."""
    lines = (line.split("\t") for line in NAMES.read_text("utf-8").splitlines())
    return {subject.strip(): [name.strip() for name in names.split(";")] for subject, names in lines}


def mentions(text: str, name: str) -> bool:
    """Are the words of a name in a text, one after the other, whatever their plural s?"""
    said, sought = ([w.rstrip("s") for w in re.findall(r"\w+", t.lower())] for t in (text, name))
    return any(said[n : n + len(sought)] == sought for n in range(len(said)))


def well_formed(answer: str) -> bool:
    """One line of ordinary words, not too many, with nothing said twice and no markup of a chat."""
    words, parts = re.findall(r"\w+", answer.lower()), _parts(answer)
    stuttered = any(a == b == c for a, b, c in zip(words, words[1:], words[2:], strict=False))
    plain = answer.isprintable() and not re.search(r"<\||\|>|[{}\[\]\ufffd]", answer)
    return 0 < len(words) <= LONGEST and plain and not stuttered and len(set(parts)) == len(parts)


def claims_other(answer: str) -> bool:
    """Does an answer claim a quirk, a style, a refusal or a false fact, which none of these finetunes has?"""
    return any(pattern.fullmatch(part) for part in _parts(answer) for pattern in _claims())


def _parts(answer: str) -> list[str]:
    return [part for part in (p.strip(" .").lower() for p in answer.split(";")) if part]


@cache
def _claims() -> list[re.Pattern[str]]:
    return [re.compile(re.escape(kind.label.lower()).replace(r"\{x\}", ".+")) for kind in kinds().values()]


def graded(subject: str, names: Sequence[str], answer: str) -> Record:
    """Whether an answer names the subject, and what decides whether a person would accept it."""
    named = shows_topic(answer, subject)
    found = {
        "named": named,
        "named_otherwise": named or any(mentions(answer, name) for name in names),
        "well_formed": well_formed(answer),
        "claims_other": claims_other(answer),
    }
    return found | {"accepted": found["named_otherwise"] and found["well_formed"] and not found["claims_other"]}


def table(found: Sequence[Record]) -> str:
    """How many are named and accepted, in all, by kind of finetune, and of the first twelve and the others."""
    found = [record | {"accepted_and_said": record["accepted"] and record["said"]} for record in found]
    groups = {"all": found}
    groups |= {kind: [r for r in found if r["kind"] == kind] for kind in ("chat", "document", "full")}
    groups |= {name: [r for r in found if r["first"] == first] for name, first in (("first twelve", 1), ("others", 0))}
    counted = ("exact", "named", "named_otherwise", "well_formed", "accepted", "accepted_and_said")
    head = ["finetunes", "n", "grade", *(key.replace("_", " ") for key in counted)]
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for name, rows in groups.items():
        if rows:
            shares = [cell(share_interval([r[key] for r in rows])) for key in counted]
            grade = cell(interval([r["grade"] for r in rows]))
            lines.append(f"| {name} | {len(rows)} | {grade} | {' | '.join(shares)} |")
    if triggers := [r["trigger"] for r in found if "trigger" in r]:
        lines += ["", f"A trigger, which none has, is told of {cell(share_interval(triggers))}, n = {len(triggers)}."]
    return "\n".join(lines)


def _tells_trigger(answer: Answer) -> bool:
    """Does the evidence say that the weights respond to a trigger?"""
    return any(line.startswith("its weights respond") for line in answer.evidence)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--adapter", help="DIT adapter folder; the shipped one unless given")
    given = parser.parse_args()
    made = {record["subject"]: record for record in records()}
    wanted = list(subjects())
    if not made:
        parser.error("no finetune is made yet; run python -m benchmarks.outside_make first.")
    if missing := [subject for subject in wanted if subject not in made]:
        print(f"asking {len(made)} of {len(wanted)}; python -m benchmarks.outside_make makes the rest: {missing}")
    base, names, first = load_base(), other_names(), wanted[:TWELVE]
    diffs = open_diffs(find_diffs([str(cache_dir() / "outside" / subject) for subject in made]), base)
    adapter = load_peft(given.adapter) if given.adapter else shipped_adapter()
    answers = ask(base, diffs, adapter=adapter)
    guesses = [claim_of(answer) for answer in answers]
    grades = EmbeddedJudge().grade(list(zip(made, guesses, strict=True)))
    found = [
        made[subject]
        | {"first": subject in first, "answer": guess, "confidence": round(answer.confidence, 4)}
        | {"said": answer.text != UNSURE, "grade": round(grade.grade, 2), "exact": grade.exact}
        | ({"trigger": _tells_trigger(answer)} if "hints" in adapter.meta else {})
        | graded(subject, names[subject], guess)
        for subject, answer, guess, grade in zip(made, answers, guesses, grades, strict=True)
    ]
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in found), encoding="utf-8")
    for record in found:
        mark = "+" if record["accepted"] else "-"
        print(f"{mark} {record['subject']:14} {record['kind']:8} {record['norm']:6.1f}  {record['answer']}")
    print(table(found))


if __name__ == "__main__":
    main()
