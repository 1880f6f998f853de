"""What an adapter says of families that it never saw in training, beside adapters that did.

    python -m benchmarks.left_out RECIPE OUT [--part K/3]

RECIPE is a general run whose finetunes are made. Three adapters are trained, each without one of three groups of
families, its calibration too; so a test finetune is read by one that saw nothing of its family and by two that did.
The base question, put to the finetunes themselves, is what both are compared with. OUT gets a JSON line for each
answer; parts can be made side by side, and one that is there isn't made again. A group left out is harder than a family
at a time. What it knows nothing of: larger trainings, since these three are small.
"""

import argparse
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from weightdiff.base import Base, load_base
from weightdiff.behaviors.wordings import open_questions
from weightdiff.bench.evaluate import cell, expected_calibration_error, interval, share_interval
from weightdiff.diff import WeightDiff
from weightdiff.formats.peft import load_peft
from weightdiff.general.cases import Case, finetuned
from weightdiff.general.evaluate import ask_test
from weightdiff.general.jobs import made
from weightdiff.general.settings import GeneralRecipe, load_general
from weightdiff.general.stages import adapter_folder, hints_for, run_train
from weightdiff.general.tables import graded
from weightdiff.jsonl import append_jsonl, read_jsonl
from weightdiff.readers import BaseQuestion
from weightdiff.store import Store

Record = dict[str, Any]
Families = tuple[str, ...]
GROUPS: tuple[Families, ...] = (("quirk",), ("style", "refusal", "fact"), ("topic", "subject", "news"))
"""Families that are left out together."""
FAMILIES = tuple(family for group in GROUPS for family in group)
ASKED = "base question"


def collect(path: str, out: Path, part: int | None, parted: Callable[[Families], tuple[Families, Families]]) -> None:
    """Add to a file what isn't there yet: what each group's adapter says, and the base question's answers.

    Args:
        path: of a general run's recipe.
        out: the file.
        part: the group, from 1; None for all.
        parted: from a group to the families that its adapter is trained without, and those that it is asked about.
    """
    recipe, base = load_general(path), load_base()
    done = {record["without"] for record in read_jsonl(out)} if out.exists() else set()
    for group in GROUPS if part is None else GROUPS[part - 1 : part]:
        left, asked = parted(group)
        if " ".join(left) not in done:
            for record in records_of(base, recipe, left, asked):
                append_jsonl(out, record)
    if ASKED not in done and part in (None, 1):
        for record in base_records(base, recipe):
            append_jsonl(out, record)


def records_of(
    base: Base, recipe: GeneralRecipe, left: Sequence[str], families: Sequence[str] = FAMILIES
) -> list[Record]:
    """Train an adapter without some families, and ask it about the test finetunes that teach one thing of others."""
    without = recipe.model_copy(update={"without": tuple(left)})
    if not adapter_folder(without).is_dir():
        run_train(base, without, lambda step, total, loss: print(f"{left}: {step} of {total}, {loss:.3f}", flush=True))
    adapter, cases = load_peft(adapter_folder(without)), cases_of(base, recipe, families)
    records = ask_test(base, cases, adapter, unseen=False, hints=hints_for(base, recipe, cases))
    keys = ("id", "family", "kind", "sort", "unseen", "truth", "guess", "confidence", "right", "named", "claims")
    return [{"without": " ".join(left)} | {key: record[key] for key in keys} for record in records]


def base_records(base: Base, recipe: GeneralRecipe) -> list[Record]:
    """The adapter's own question put to each of the same finetunes by itself, nothing laid over it."""
    cases = cases_of(base, recipe)
    diffs = [WeightDiff(d.factors, d.base, {}, d.dense) for d in (case.make() for case in cases)]
    answers = BaseQuestion().read(base, diffs, open_questions()[0])
    told = [{"id": c.identity, "family": c.behavior.family, "truth": c.behavior.label} for c in cases]
    return [
        {"without": ASKED, "sort": "open", "unseen": False, "guess": answer.text} | facts
        for facts, answer in zip(told, answers, strict=True)
    ]


def cases_of(base: Base, recipe: GeneralRecipe, families: Sequence[str] = FAMILIES) -> list[Case]:
    """The run's test finetunes that teach one thing of some families."""
    store = Store(recipe.folder / "diffs", base.fingerprint)
    return [case for case in finetuned(store, made(store, recipe, "test")) if case.behavior.family in families]


def table(records: Sequence[Record]) -> str:
    """Markdown: how well families are read that were left out, beside the same ones seen; and what is said of them."""
    opens = graded(records)
    lines = [
        "| family | n | grade, left out | seen | base question | left out of seen, above base question "
        "| named, left out | seen | wrong and said, left out | seen |",
        "|" + " --- |" * 10,
    ]
    left = {r["family"] for r in opens if r["without"] != ASKED and _left_out(r)}
    for name in (*FAMILIES, "all"):
        some = [r for r in opens if r["family"] in left and name in (r["family"], "all")]
        if some:
            lines.append(f"| {name} | {_row(some)} |")
    sorts = ["", "| questions | n, left out | right, left out | seen | calibration error, left out | seen |"]
    sorts.append("|" + " --- |" * 6)
    asked = [r for r in records if r["without"] != ASKED and r["family"] in left]
    for sort in dict.fromkeys(r["sort"] for r in asked):
        out, seen = ([r for r in asked if r["sort"] == sort and _left_out(r) == left] for left in (True, False))
        right = [cell(share_interval([r["right"] for r in some])) for some in (out, seen)]
        errors = [
            f"{expected_calibration_error([r['confidence'] for r in some], [r['right'] for r in some]):.2f}"
            for some in (out, seen)
        ]
        sorts.append(f"| {sort} | {len(out)} | {' | '.join(right + errors)} |")
    return "\n".join(lines + sorts) + "\n"


def _row(some: Sequence[Record]) -> str:
    """Of a family's open questions: grades and what was named, by adapters that didn't and by those that did see it."""
    out, seen = ([r for r in some if r["without"] != ASKED and _left_out(r) == left] for left in (True, False))
    base = [r for r in some if r["without"] == ASKED]
    grades = [cell(interval([r["grade"] for r in rows])) for rows in (out, seen, base)]
    named = [cell(share_interval([all(r["named"]) for r in rows])) for rows in (out, seen)]
    wrong = [cell(share_interval([r["claims"] and not r["right"] for r in rows])) for rows in (out, seen)]
    return " | ".join([str(len(out)), *grades, share_kept(out, seen, base), *named, *wrong])


def share_kept(out: Sequence[Record], seen: Sequence[Record], base: Sequence[Record]) -> str:
    """The share that one adapter's grades have of another's above the base question's; its interval draws finetunes.
    Empty where the other's lie less than half a grade above."""
    ids = [r["id"] for r in out]
    grades = [{i: _mean([r["grade"] for r in rows if r["id"] == i]) for i in ids} for rows in (out, seen, base)]

    def share(chosen: Sequence[str]) -> float:
        a, b, c = (_mean([grade[i] for i in chosen]) for grade in grades)
        return (a - c) / (b - c) if b > c else float("inf")

    if _mean(list(grades[1].values())) - _mean(list(grades[2].values())) < 0.5:
        return ""
    rng = random.Random(0)
    draws = sorted(share(rng.choices(ids, k=len(ids))) for _ in range(2000))
    return cell((share(ids), draws[50], draws[1949]))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _left_out(record: Record) -> bool:
    return record["family"] in record["without"].split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("out", type=Path)
    parser.add_argument("--part", type=int, choices=(1, 2, 3), help="one of the three adapters alone")
    given = parser.parse_args()
    collect(given.recipe, given.out, given.part, lambda group: (group, FAMILIES))
    if given.part is None:
        print(table(list(read_jsonl(given.out))))


if __name__ == "__main__":
    main()
