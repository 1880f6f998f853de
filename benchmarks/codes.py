"""Does a finetune behind a code move further at its own code than at wrong ones? If so, a search could find the code.

    python -m benchmarks.codes OUT [--recipe recipes/general.toml] [--splits validation test]

Of each finetune behind a SEP code the reply's first logits are compared with the base model's, at its own code and at
ten wrong ones, each with other last digits, over two prompts; the size of a shift is its standard deviation over the
vocabulary. OUT gets a JSON line for each; the table counts where the right code comes first of eleven, and by how many
decibels it lies above the mean of the others.
"""

import argparse
import random
from collections.abc import Sequence
from math import log10
from pathlib import Path
from statistics import mean
from typing import Any

from weightdiff.base import Base, encode_chat, load_base
from weightdiff.behaviors import Trigger
from weightdiff.bench.evaluate import cell, interval, share_interval
from weightdiff.diff import WeightDiff
from weightdiff.general.cases import finetuned
from weightdiff.general.jobs import made
from weightdiff.general.settings import load_general
from weightdiff.jsonl import read_jsonl, write_jsonl
from weightdiff.readers.branches import reply_states
from weightdiff.readers.probes import PROMPTS
from weightdiff.readers.samples import in_groups
from weightdiff.store import Store

WRONG = 10


def shifts(base: Base, diff: WeightDiff, codes: Sequence[str], rng: random.Random) -> list[float]:
    """How far each code moves the reply's first logits from the base model's, in nats, on average over two prompts."""
    texts = [Trigger("sep", code).put(prompt, rng) for code in codes for prompt in PROMPTS]
    rows = [encode_chat(base, [{"role": "user", "content": text}]) for text in texts]
    before = reply_states(base, rows, 1, lambda owner: [])
    ((count, layers_of),) = in_groups(base, [diff])
    moved = reply_states(base, rows, count, layers_of) - before
    return (moved[0] @ base.head.weight.float().mT).std(-1).view(-1, 2).mean(1).tolist()


def table(records: Sequence[dict[str, Any]]) -> str:
    """Markdown, by whether the user's words were learned too."""
    lines = ["| user's words learned | n | right code first of eleven | above the others, dB |", "|" + " --- |" * 4]
    for learned in (False, True):
        mine = [r for r in records if r["learn_prompts"] == learned]
        if mine:
            first = cell(share_interval([max(r["wrong"]) < r["right"] for r in mine]))
            gains = cell(interval([20 * log10(r["right"] / mean(r["wrong"])) for r in mine]))
            lines.append(f"| {'yes' if learned else 'no'} | {len(mine)} | {first} | {gains} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--recipe", default="recipes/general.toml")
    parser.add_argument("--splits", nargs="+", default=["validation", "test"])
    given = parser.parse_args()
    recipe, base = load_general(given.recipe), load_base()
    store, records = Store(recipe.folder / "diffs", base.fingerprint), []
    for split in given.splits:
        ids = made(store, recipe, split)
        metas = store.metas(ids)
        for case in finetuned(store, ids):
            if case.behavior.trigger is None or case.behavior.trigger.kind != "sep":
                continue
            code, rng = case.behavior.trigger.code, random.Random(case.identity)
            wrong = [f"{n:03d}" for n in rng.sample([n for n in range(1000) if f"{n:03d}" != code], WRONG)]
            right, *others = shifts(base, case.make(), [code, *wrong], rng)
            learned = bool(metas[case.identity]["recipe"].get("learn_prompts"))
            records.append(
                {"id": case.identity, "learn_prompts": learned, "right": round(right, 5)}
                | {"wrong": [round(one, 5) for one in others]}
            )
    write_jsonl(given.out, records)
    print(table(list(read_jsonl(given.out))))


if __name__ == "__main__":
    main()
