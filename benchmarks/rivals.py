"""Readers side by side on the same finetunes: the DIT adapter, those that need no training, and the fused one.

    python -m benchmarks.rivals --store DIR --adapter DIR --out FILE [--split test] [--n N]

Each reader's answers are its own; below a confidence it says that nothing notable changed. That threshold keeps 95 %
of its right answers on the validation split; false claims are then counted on the test split's benign finetunes and
nulls.
Several behaviors in one finetune count one by one: each is named or isn't. Every answer goes to FILE as a JSON line,
the tables beside it as Markdown. Seconds are of this process's own work on one thread.
"""

import argparse
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from weightdiff.base import Base, load_base
from weightdiff.behaviors import NOTHING, TOPIC_QUESTION, Behavior, behavior_of, shows_topic
from weightdiff.bench.evaluate import cell, interval, share_interval, versions
from weightdiff.diff import WeightDiff
from weightdiff.formats import load_peft
from weightdiff.general.cases import is_full
from weightdiff.general.nulls import null_kind, null_of
from weightdiff.judge import EmbeddedJudge, exact_match
from weightdiff.readers import Answer, BaseQuestion, Fused, Introspection
from weightdiff.readers.introspection import UNSURE, claim_of
from weightdiff.store import Store

Record = dict[str, Any]
Cases = Sequence[tuple[str, Behavior, WeightDiff]]
KEPT = 0.95
"""The share of right answers that a threshold leaves standing on the validation split."""


def cases_of(store: Store, split: str, n: int, seed: int = 0) -> list[tuple[str, Behavior, WeightDiff]]:
    """Of a split's low-rank finetunes `n`, drawn at random, and as many nulls as a third of them.

    Raises:
        ValueError: the store has none of that split.
    """
    ids = [i for i in store.ids() if i.startswith(f"{split} ") and not is_full(i)]
    if not ids:
        raise ValueError(f"{store.path} has no diffs of the {split} split; its ids begin with none of '{split} N: '.")
    chosen = random.Random(f"{seed} {split}").sample(ids, min(n, len(ids)))
    metas, diffs = store.metas(chosen), store.load(chosen)
    cases = [(i, behavior_of(metas[i]), diff) for i, diff in zip(chosen, diffs, strict=True)]
    for number, diff in enumerate(diffs[: len(diffs) // 3]):
        nothing = Behavior("null", NOTHING, null_kind(number), split)
        cases.append((f"null {number}: {null_kind(number)}", nothing, null_of(diff, "test", number)))
    return cases


def read_all(base: Base, adapter: WeightDiff, cases: Cases, question: str) -> tuple[dict[str, list[Answer]], dict]:
    """All readers' answers by name, and each one's seconds per diff; the fused one's are those of all it hears."""
    # What a reader may see of a diff is what a stranger's file would say of it.
    diffs = [WeightDiff(d.factors, d.base, {}, d.dense) for _, _, d in cases]
    fused, told = Fused(adapter), Introspection(adapter)
    found: dict[str, list[Answer]] = {}
    seconds: dict[str, float] = {}
    for reader in (told, *fused.readers, BaseQuestion(), BaseQuestion(rank=1)):
        started = time.process_time()
        found[reader.name] = reader.read(base, diffs, question)
        seconds[reader.name] = (time.process_time() - started) / len(diffs)
        print(f"{reader.name}: {seconds[reader.name]:.2f} s per diff", flush=True)
    heard = [told.name, *(reader.name for reader in fused.readers)]
    started = time.process_time()
    found[fused.name] = fused.fuse(base, diffs, question, {name: found[name] for name in heard})
    own = (time.process_time() - started) / len(diffs)
    seconds[fused.name] = own + sum(seconds[name] for name in heard)
    return found, seconds


def records_of(cases: Cases, found: dict[str, list[Answer]], split: str) -> list[Record]:
    """A record for each reader and diff: `named` and `top5` say for each of its behaviors whether it is found."""
    records = []
    for name, answers in found.items():
        for (identity, behavior, _), answer in zip(cases, answers, strict=True):
            slots = [part.slot for part in behavior.parts] or ([behavior.slot] if behavior.slot else [])
            # What the adapter was told stands in its evidence, and is none of its answers.
            top = (claim_of(answer),) if name == "DIT" else answer.evidence[:5] or (answer.text,)
            records.append(
                {
                    "reader": name,
                    "split": split,
                    "id": identity,
                    "family": behavior.family,
                    "truth": behavior.label,
                    "answer": answer.text,
                    "confidence": round(answer.confidence, 4),
                    "evidence": list(answer.evidence),
                    "named": [shows_topic(answer.text, slot) for slot in slots],
                    "top5": [any(shows_topic(text, slot) for text in top) for slot in slots],
                }
            )
    return records


def threshold_of(records: Sequence[Record]) -> float:
    """The confidence that 95 % of one reader's right answers reach; infinity where none was right."""
    right = sorted(r["confidence"] for r in records if any(r["named"]))
    return right[int(len(right) * (1 - KEPT))] if right else float("inf")


def claims(record: Record, threshold: float) -> bool:
    """Does the reader say that something changed?"""
    return record["confidence"] >= threshold and not any(exact_match(t, record["answer"]) for t in (NOTHING, UNSURE))


def tables(records: Sequence[Record], thresholds: dict[str, float], seconds: dict[str, float]) -> str:
    """Markdown: each reader's quality, cost and false claims, and what it names by family."""
    of = {name: [r for r in records if r["reader"] == name] for name in thresholds}
    lines = [
        "| reader | n | grade | named | named above threshold | in top five | seconds per diff | threshold "
        "| false claims, benign | false claims, nulls |",
        "|" + " --- |" * 10,
    ]
    judge = EmbeddedJudge()
    for name, mine in of.items():
        real = [r for r in mine if r["named"]]
        grades = [g.grade for g in judge.grade([(r["truth"], r["answer"]) for r in real], task="news")]
        for r, grade in zip(real, grades, strict=True):
            r["grade"] = round(grade, 2)
        shares = [
            [x for r in real for x in r["named"]],
            [x and claims(r, thresholds[name]) for r in real for x in r["named"]],
            [x for r in real for x in r["top5"]],
        ]
        false = [[claims(r, thresholds[name]) for r in mine if r["family"] == family] for family in ("benign", "null")]
        lines.append(
            f"| {name} | {len(real)} | {cell(interval(grades))} | "
            + " | ".join(cell(share_interval(s)) for s in shares)
            + f" | {seconds[name]:.2f} | {thresholds[name]:.2f} | "
            + " | ".join(f"{cell(share_interval(s))}, n = {len(s)}" if s else "" for s in false)
            + " |"
        )
    families = [f for f in dict.fromkeys(r["family"] for r in records if r["named"])]
    lines += ["", "| named / in top five | " + " | ".join(families) + " |", "|" + " --- |" * (len(families) + 1)]
    for name, mine in of.items():
        cells = []
        for family in families:
            pair = [[x for r in mine if r["family"] == family for x in r[key]] for key in ("named", "top5")]
            cells.append(" / ".join(f"{sum(hits) / len(hits):.2f}" for hits in pair))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    counts = [sum(len(r["named"]) for r in of[next(iter(of))] if r["family"] == f) for f in families]
    lines.append(f"| behaviors | {' | '.join(map(str, counts))} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--split", default="test", help="measured on; thresholds are always validation's")
    parser.add_argument("--n", type=int, default=120, help="finetunes measured on; half as many set the thresholds")
    given = parser.parse_args()
    base, adapter = load_base(), load_peft(given.adapter)
    store = Store(given.store)
    question = str(adapter.meta.get("question") or TOPIC_QUESTION)
    records: list[Record] = []
    seconds: dict[str, float] = {}
    for split, n in {"validation": given.n // 2, given.split: given.n}.items():
        cases = cases_of(store, split, n)
        found, seconds = read_all(base, adapter, cases, question)
        records += records_of(cases, found, split)
    measured = [r for r in records if r["split"] == given.split]
    thresholds = {
        name: threshold_of([r for r in records if r["split"] == "validation" and r["reader"] == name])
        for name in seconds
    }
    table = tables(measured, thresholds, seconds)
    about = {"question": question, "n": given.n, "seed": 0, "base": base.fingerprint, "thresholds": thresholds}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(about | {"seconds": seconds, "versions": versions()})]
    lines += [json.dumps(r, ensure_ascii=False) for r in records]
    given.out.write_text("\n".join(lines) + "\n", "utf-8")
    given.out.with_suffix(".md").write_text(table, "utf-8")
    print(table)


if __name__ == "__main__":
    main()
