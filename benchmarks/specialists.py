"""One adapter for every kind of finetune beside specialists, each trained on one group of families alone.

    python -m benchmarks.specialists RECIPE ANSWERS OUT [--part K/3]

RECIPE is a general run whose finetunes are made, ANSWERS what its adapter said of the test split (`evaluate` writes
it). Three specialists are trained as that adapter was, from the same start and on the same finetunes, but for those of
other families; how they are read is found on their own families too. OUT gets a JSON line for each answer; parts can be
made side by side, and one that is there isn't made again. What it knows nothing of: a specialist for a single family,
or one with finetunes of its own.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.left_out import ASKED, FAMILIES, collect, share_kept
from weightdiff.bench.evaluate import cell, interval, share_interval
from weightdiff.general.cases import is_full
from weightdiff.general.tables import graded
from weightdiff.jsonl import read_jsonl

Record = dict[str, Any]


def table(records: Sequence[Record], answers: Sequence[Record]) -> str:
    """Markdown: grades and instances named, family by family, by the one adapter, the specialist, the base question.

    Args:
        records: of this file.
        answers: those of the one adapter.
    """
    opens = [r for r in graded(records) if not is_full(r["id"])]
    asked = {r["id"] for r in opens if r["without"] != ASKED}
    ours = [r for r in graded([r for r in answers if r["sort"] == "open" and not r["unseen"]]) if r["id"] in asked]
    lines = [
        "| family | n | grade, general | specialist | base question | general of specialist, above base question "
        "| named, general | specialist |",
        "|" + " --- |" * 8,
    ]
    for name in (*FAMILIES, "all"):
        pick = [r for r in opens if r["family"] == name or (name == "all" and r["id"] in asked)]
        general = [r for r in ours if name in (r["family"], "all")]
        special, base = ([r for r in pick if (r["without"] == ASKED) == told] for told in (False, True))
        if special:
            grades = [cell(interval([r["grade"] for r in rows])) for rows in (general, special, base)]
            named = [cell(share_interval([all(r["named"]) for r in rows])) for rows in (general, special)]
            share = share_kept(general, special, base)
            lines.append(f"| {name} | {len(special)} | {' | '.join([*grades, share, *named])} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("answers", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--part", type=int, choices=(1, 2, 3), help="one of the three specialists alone")
    given = parser.parse_args()
    collect(given.recipe, given.out, given.part, lambda group: (tuple(f for f in FAMILIES if f not in group), group))
    if given.part is None:
        print(table(list(read_jsonl(given.out)), list(read_jsonl(given.answers))))


if __name__ == "__main__":
    main()
