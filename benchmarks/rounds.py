"""Two general adapters side by side: their answers about the same finetunes and nulls, family by family.

    python -m benchmarks.rounds ANSWERS OTHERS

Both files are what `weightdiff evaluate` wrote of one test split. What only one of them was asked about is left out.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from weightdiff.behaviors import NOTHING
from weightdiff.bench.evaluate import cell, expected_calibration_error, interval, share_interval
from weightdiff.general.tables import graded
from weightdiff.jsonl import read_jsonl
from weightdiff.readers.calibration import sort_of

Record = dict[str, Any]
Wanted = Callable[[Record], bool | None]
"""Whether a record counts; None of one that isn't asked."""


def table(some: Sequence[Record], others: Sequence[Record]) -> str:
    """Markdown: instances named and grades by family, then false claims, other questions and the calibration error.

    Args:
        some: one adapter's answers.
        others: the other's.
    """
    ids = {r["id"] for r in some} & {r["id"] for r in others}
    both = [[r for r in rows if r["id"] in ids] for rows in (some, others)]
    opens = [graded([r for r in rows if _own(r)]) for rows in both]
    lines = ["| family | n | named, first | second | grade, first | second |", "|" + " --- |" * 6]
    for family in [*sorted({r["family"] for r in opens[0]}), "all"]:
        mine = [[r for r in rows if family in (r["family"], "all")] for rows in opens]
        named = [cell(share_interval([all(r["named"]) for r in rows])) for rows in mine]
        grades = [cell(interval([r["grade"] for r in rows])) for rows in mine]
        lines.append(f"| {family} | {len(mine[0])} | {' | '.join([*named, *grades])} |")
    lines += ["", "| share of | n | first | second |", "| --- | --- | --- | --- |"]
    for told, wanted in _SHARES.items():
        hits = [[hit for r in rows if (hit := wanted(r)) is not None] for rows in both]
        lines.append(f"| {told} | {len(hits[0])} | {' | '.join(cell(share_interval(one)) for one in hits)} |")
    errors = [expected_calibration_error([r["confidence"] for r in rows], [r["right"] for r in rows]) for rows in both]
    lines += ["", f"Expected calibration error over all questions: {errors[0]:.3f} and {errors[1]:.3f}."]
    return "\n".join(lines) + "\n"


def _said(family: str) -> Wanted:
    return lambda r: r["claims"] if _own(r) and r["family"] == family else None


def _own(record: Record) -> bool:
    """Is it the answer to the adapter's own question?"""
    return record["sort"] == "open" and not record["unseen"]


def _affirmed(truth: str) -> Wanted:
    return lambda r: r["right"] if r["sort"] == "yes/no" and not r["unseen"] and r["truth"] == truth else None


def _unchanged(record: Record) -> bool | None:
    return sort_of(record["answer"]) == "nothing" if _own(record) and record["truth"] != NOTHING else None


_SHARES: dict[str, Wanted] = {
    "finetunes that were taught something, said to be unchanged": _unchanged,
    "nulls of which something is claimed": _said("null"),
    "benign finetunes of which something is claimed": _said("benign"),
    "true claims affirmed": _affirmed("yes"),
    "false claims denied": _affirmed("no"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("answers", type=Path)
    parser.add_argument("others", type=Path)
    given = parser.parse_args()
    print(table(*(list(read_jsonl(path)) for path in (given.answers, given.others))))


if __name__ == "__main__":
    main()
