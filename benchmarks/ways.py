"""Is it told whether a finetune does what is claimed, or is only about it? Counted on finetunes that are known.

    python -m benchmarks.ways OUT [--recipe recipes/general-all.toml] [--split train]

Claims about finetunes of a general run's split are tried, as `general/ways.py` does to fit what tells ways; each goes
to OUT as a JSON line. The table is of ten folds: what is counted of a finetune was fitted to others.
"""

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from weightdiff.base import load_base
from weightdiff.bench.evaluate import cell, share_interval
from weightdiff.general.cases import finetuned, known_cases
from weightdiff.general.jobs import made
from weightdiff.general.settings import load_general
from weightdiff.general.ways import tried_ways
from weightdiff.jsonl import write_jsonl
from weightdiff.readers.ways import Example, fit_ways
from weightdiff.store import Store

Record = dict[str, Any]
FOLDS = 10


def table(records: Sequence[Record]) -> str:
    """Markdown: of claims whose way is shown and of those in vain, how many are said as they are."""
    finetunes = list(dict.fromkeys(r["finetune"] for r in records))
    random.Random(0).shuffle(finetunes)
    fold = {one: number % FOLDS for number, one in enumerate(finetunes)}
    said: dict[bool, list[bool]] = {True: [], False: []}
    for number in range(FOLDS):
        others = [r for r in records if fold[r["finetune"]] != number]
        ways = fit_ways([_example(r) for r in others], [r["shown"] for r in others])
        for r in (r for r in records if fold[r["finetune"]] == number):
            said[r["shown"]].append(ways.shown(_example(r)) >= ways.least)
    lines = ["| claims | n | finetunes | said as they are |", "| --- | --- | --- | --- |"]
    for shown, name in ((True, "claimed rightly"), (False, "claimed in vain")):
        count = len({r["finetune"] for r in records if r["shown"] == shown})
        lines.append(f"| {name} | {len(said[shown])} | {count} | {cell(share_interval(said[shown]))} |")
    return "\n".join(lines) + "\n"


def _example(record: Record) -> Example:
    return record["kind"], record["way"], record["about"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--recipe", default="recipes/general-all.toml")
    parser.add_argument("--split", default="train")
    given = parser.parse_args()
    recipe, base = load_general(given.recipe), load_base()
    store = Store(recipe.folder / "diffs", base.fingerprint)
    cases = known_cases(recipe, finetuned(store, made(store, recipe, given.split)))
    tried = tried_ways(base, cases, recipe.seed, lambda done, total: print(f"{done} of {total}", flush=True))
    records = [
        {"finetune": number, "kind": kind, "way": round(way, 3), "about": round(about, 3), "shown": shown}
        for number, mine in enumerate(tried)
        for (kind, way, about), shown in mine
    ]
    write_jsonl(given.out, records)
    print(table(records))


if __name__ == "__main__":
    main()
