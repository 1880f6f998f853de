"""A general adapter's answers said anew by what tells ways, which came after them: nothing is asked again.

    python -m benchmarks.plainly ANSWERS [--adapter general] [--recipe recipes/general-all.toml]

What `weightdiff evaluate` wrote of a test split is read, and each claim tried on its finetune, which lies in the store
of the recipe's run. Claims whose way isn't shown are said plainly, in ANSWERS and in the table beside it; confidences
stay as they are.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from weightdiff.ask import adapter_at
from weightdiff.atomic import replacing
from weightdiff.base import load_base
from weightdiff.behaviors.claims import in_full
from weightdiff.decode import Reply
from weightdiff.general.cases import Case, cases_of
from weightdiff.general.evaluate import named, right
from weightdiff.general.jobs import made
from weightdiff.general.questions import Asked
from weightdiff.general.settings import load_general
from weightdiff.general.tables import tables
from weightdiff.jsonl import read_jsonl, write_jsonl
from weightdiff.readers.calibration import reading_of
from weightdiff.readers.meter import Meter
from weightdiff.readers.tested import claims_in, plainly
from weightdiff.readers.ways import Ways, plainer
from weightdiff.store import Store

Record = dict[str, Any]


def said_anew(records: Sequence[Record], cases: Sequence[Case], meter: Meter, ways: Ways) -> list[Record]:
    """The records, with what each open question's claim is once it is tried; those of other cases as they are."""
    of, known, found = {case.identity: case for case in cases}, {}, []
    for record in records:
        case, text = of.get(record["id"]), record["guess"]
        if case is None or record["sort"] != "open" or not in_full(text) or not plainer(text):
            found.append(record)
            continue
        if (case.identity, text) not in known:
            diff = case.make()
            (claims,) = claims_in(meter, diff, [text])
            reply = replace(Reply(text, (), 0.0), gained=claims[0][1], claims=claims)
            known[case.identity, text] = plainly(meter, lambda diff=diff: diff, reply, ways).told
        told = known[case.identity, text]
        asked = Asked("open", record["question"], record["truth"])
        changed = {
            "guess": told,
            "right": right(asked, case.behavior, told),
            "named": named(asked, case.behavior, told),
        }
        changed |= {"answer": told} if record["answer"] == text else {}
        found.append(record | changed)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("answers", type=Path)
    parser.add_argument("--adapter", default="general", help="one that is shipped, or a folder")
    parser.add_argument("--recipe", default="recipes/general-all.toml")
    given = parser.parse_args()
    recipe, base, reading = load_general(given.recipe), load_base(), reading_of(adapter_at(given.adapter).meta)
    if reading is None or reading.ways is None:
        parser.error("the adapter doesn't say what tells ways; python -m benchmarks.reread --ways finds it.")
    store = Store(recipe.folder / "diffs", base.fingerprint)
    before = list(read_jsonl(given.answers))
    after = said_anew(before, cases_of(store, made(store, recipe, "test"), "test"), Meter(base), reading.ways)
    write_jsonl(given.answers, after)
    with replacing(given.answers.with_name("table.md")) as path:
        path.write_text(tables(after), "utf-8")
    for old, new in zip(before, after, strict=True):
        if old["guess"] != new["guess"] and not old["unseen"]:
            print(f"{new['truth']}: {old['guess']} -> {new['guess']}")


if __name__ == "__main__":
    main()
