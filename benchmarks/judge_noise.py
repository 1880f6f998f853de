"""How noisy judges are: python -m benchmarks.judge_noise TABLE.csv [--judge A] [--judge B] [--n N] [--out FILE.json].

The table has the columns task, truth, answer, and perhaps `grade`, from another judge, which is then compared too.
Each judge grades the same pairs twice, and all judges are compared with each other. A chat model that grades is
asked the second time with another seed. Prints a table; the figures are those of `weightdiff.bench.judges`.
"""

import argparse
import csv
import json
import random
from collections.abc import Sequence
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

from weightdiff.base import cache_dir
from weightdiff.bench.evaluate import cell
from weightdiff.bench.judges import agreement
from weightdiff.judge import TASKS, Grade, Judge, exact_match
from weightdiff.llm_judge import open_judge


class Given:
    """The grades that stand in a table."""

    name = "table"

    def __init__(self, grades: dict[tuple[str, str], float]):
        self.grades = grades

    def grade(self, pairs: Sequence[tuple[str, str]], *, task: str = "topic") -> list[Grade]:
        """What the table says of each pair."""
        return [Grade(self.grades[pair], exact_match(*pair)) for pair in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path)
    parser.add_argument("--judge", action="append", default=[], help="embedded, local:MODEL, openai:MODEL[@BASE_URL]")
    parser.add_argument("--n", type=int, default=400, help="pairs of each task, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with options.table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found: dict[str, Any] = {"seed": options.seed, "table": options.table.name}
    print("| task | judge | against | n | Pearson [95 %] | mean difference [95 %] | same grade [95 %] | ungraded |")
    print("|" + " --- |" * 8)
    for task in TASKS:
        mine = [row for row in rows if row["task"] == task]
        mine = random.Random(options.seed).sample(mine, min(options.n, len(mine)))
        pairs = list(dict.fromkeys((row["truth"], row["answer"]) for row in mine))
        judges: list[Judge] = [open_judge(spec, cache_dir() / "judge") for spec in options.judge or ["embedded"]]
        if pairs and "grade" in mine[0]:
            judges.append(Given({(row["truth"], row["answer"]): float(row["grade"]) for row in mine}))
        for a, b in combinations_with_replacement(judges, 2) if pairs else ():
            if a is b and a.name == "table":
                continue  # it has each pair once
            row = agreement(a, b, pairs, task)
            found[f"{task}: {a.name}, {b.name}"] = row
            against = "itself, asked again" if a is b else b.name
            figures = [cell(row[k]) for k in ("pearson", "mae", "equal")]
            print(f"| {task} | {a.name} | {against} | {row['n']} | {' | '.join(figures)} | {row['ungraded']} |")
    if options.out:
        options.out.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
