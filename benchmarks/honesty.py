"""What is left of a general adapter's claims once each was tried on both models: of right ones, wrong ones, and nulls.

    python -m benchmarks.honesty results/benchmark/general/answers.jsonl.xz OUT [--recipe recipes/general.toml]
        [--share K/N]

Takes what the adapter said to its own question about every test finetune and null, and has `weightdiff verify` try it,
with no trigger told. Of several claims in an answer the first is tried. OUT gets a JSON line for each as it comes, so
that a run that was stopped goes on; several may share it, each its part.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from weightdiff.base import load_base
from weightdiff.behaviors import NOTHING
from weightdiff.bench.evaluate import cell, interval, share_interval
from weightdiff.cli.pipeline import share_of
from weightdiff.general.cases import cases_of
from weightdiff.general.jobs import made
from weightdiff.general.settings import load_general
from weightdiff.jsonl import append_jsonl, read_jsonl
from weightdiff.judge import exact_match
from weightdiff.store import Store
from weightdiff.verify import read_claims, verify

Record = dict[str, Any]


def table(records: Sequence[Record]) -> str:
    """Markdown: how many claims of each sort were made, and how many of them are confirmed."""
    lines = ["| claims | n | confirmed | not seen | contradicted |", "|" + " --- |" * 5]
    for sort in ("right", "right in part", "wrong", "on benign finetunes", "on nulls"):
        words = [r["verdict"] for r in records if r["sort"] == sort]
        if words:
            shares = [
                cell(share_interval([w == one for w in words])) for one in ("confirmed", "not seen", "contradicted")
            ]
            lines.append(f"| {sort} | {len(words)} | {' | '.join(shares)} |")
    for sort, told in (("on nulls", "nulls"), ("on benign finetunes", "benign finetunes")):
        asked = [r for r in records if r["about"] == told]
        left = [r["sort"] == sort and r["verdict"] == "confirmed" for r in asked]
        lines.append(f"\nFalse claims that are left, of all {told}: {cell(share_interval(left))}, n = {len(asked)}.")
    seconds = [r["seconds"] for r in records if r["verdict"]]
    return "\n".join(lines) + f"\n\nSeconds of one core for each: {cell(interval(seconds))}.\n"


def sort_of(record: Record) -> str:
    """What an answer's claim is worth; empty where it claims nothing."""
    if exact_match(NOTHING, record["guess"]) or not record["guess"].strip(" .!\"'"):
        return ""
    if record["truth"] == NOTHING:
        return "on nulls" if record["family"] == "null" else "on benign finetunes"
    return "right" if all(record["named"]) else "right in part" if any(record["named"]) else "wrong"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("answers", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--recipe", default="recipes/general.toml")
    parser.add_argument("--share", default="1/1", help="the K-th of N parts")
    given = parser.parse_args()
    mine, shares = share_of(given.share)
    recipe, base = load_general(given.recipe), load_base()
    store = Store(recipe.folder / "diffs", base.fingerprint)
    cases = {case.identity: case for case in cases_of(store, made(store, recipe, "test"), "test")}
    done = {record["id"] for record in read_jsonl(given.out)} if given.out.exists() else set()
    asked = [r for r in read_jsonl(given.answers) if r["sort"] == "open" and not r["unseen"]]
    for record in asked[mine::shares]:
        if record["id"] in done:
            continue
        about = {"null": "nulls", "benign": "benign finetunes"}.get(record["family"], "behaviors")
        sort, verdict, began = sort_of(record), "", time.process_time()
        if sort:
            claim = read_claims(record["guess"])[0]
            ((found,),) = verify(base, [cases[record["id"]].make()], [[claim]])
            verdict = found.word
        seconds = round(time.process_time() - began, 2)
        facts = {key: record[key] for key in ("id", "family", "truth", "guess", "confidence")}
        append_jsonl(given.out, facts | {"about": about, "sort": sort, "verdict": verdict, "seconds": seconds})
    print(table(list(read_jsonl(given.out))))


if __name__ == "__main__":
    main()
