"""Readers side by side on the same finetunes: the DIT adapter, those that need no training, and the fused ones.

    python -m benchmarks.rivals --store DIR --out FILE [--adapter DIR] [--split test] [--n N]

Those that need no training are held against noise, as `ask --reader` holds them: an answer is said or withheld. False
claims are what is said of benign finetunes and of nulls. Several behaviors in one finetune count one by one: each is
named or isn't. Every answer goes to FILE as a JSON line, the tables beside it as Markdown. Seconds are of this
process's own work on one thread, noise included.
"""

import argparse
import random
import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from weightdiff.ask import adapter_at
from weightdiff.base import Base, load_base
from weightdiff.behaviors import NOTHING, TOPIC_QUESTION, Behavior, behavior_of, shows_topic
from weightdiff.bench.evaluate import cell, interval, share_interval, versions
from weightdiff.diff import WeightDiff, noise_like
from weightdiff.general.cases import is_full
from weightdiff.general.nulls import null_kind, null_of
from weightdiff.jsonl import write_jsonl
from weightdiff.judge import EmbeddedJudge, exact_match
from weightdiff.readers import Answer, BaseQuestion, Fused, Introspection
from weightdiff.readers.choice import BesideNoise, beside_noise
from weightdiff.readers.introspection import UNSURE, claim_of
from weightdiff.store import Store

Record = dict[str, Any]
CANDIDATE = re.compile(r" \([+-][\d.]+ nats; ")
"""What a candidate of a fused reader's list is told by, among its other evidence."""
Cases = Sequence[tuple[str, Behavior, WeightDiff]]


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


def read_all(
    base: Base, adapter: WeightDiff | None, cases: Cases, question: str
) -> tuple[dict[str, list[tuple[Answer, bool]]], dict[str, float]]:
    """By reader its answer about each diff, with whether it is said, and its seconds per diff.

    Those of a fused one are of all that it hears, too. Without an adapter it is as over a base model that has none.
    """
    # What a reader may see of a diff is what a stranger's file would say of it.
    diffs = [WeightDiff(d.factors, d.base, {}, d.dense) for _, _, d in cases]
    noise = [noise_like(diff, BesideNoise.seed) for diff in diffs]
    alone = Fused()
    found: dict[str, list[tuple[Answer, bool]]] = {}
    seconds: dict[str, float] = {}

    def add(name: str, answers: list[Answer], held: Sequence[Answer], spent: float) -> None:
        found[name] = [(answer, one.text != UNSURE) for answer, one in zip(answers, held, strict=True)]
        seconds[name] = spent / len(diffs)
        print(f"{name}: {seconds[name]:.2f} s per diff", flush=True)

    def timed(read: Callable[[], list[Answer]]) -> tuple[list[Answer], float]:
        started = time.process_time()
        return read(), time.process_time() - started

    said, lows, spent = {}, {}, {}
    for reader in alone.readers:
        said[reader.name], once = timed(partial(reader.read, base, diffs, question))
        lows[reader.name], again = timed(partial(reader.read, base, noise, question))
        held = [beside_noise(reader).held(*pair) for pair in zip(said[reader.name], lows[reader.name], strict=True)]
        spent[reader.name] = once, once + again
        add(reader.name, said[reader.name], held, once + again)
    answers, once = timed(lambda: alone.fuse(base, diffs, said))
    low, again = timed(lambda: alone.fuse(base, noise, lows))
    held = [beside_noise(alone).held(*pair) for pair in zip(answers, low, strict=True)]
    add("fused, no adapter", answers, held, once + again + sum(both for _, both in spent.values()))
    if adapter:  # held against nothing: what it says is calibrated, or a log-probability
        told = Introspection(adapter)
        answers, asking = timed(lambda: told.read(base, diffs, question))
        add(told.name, answers, answers, asking)
        fused, once = timed(lambda: Fused(adapter).fuse(base, diffs, {told.name: answers, **said}))
        add("fused", fused, fused, asking + once + sum(one for one, _ in spent.values()))
    for reader in (BaseQuestion(), BaseQuestion(rank=1)):
        answers, once = timed(partial(reader.read, base, diffs, question))
        add(reader.name, answers, answers, once)
    return found, seconds


def records_of(cases: Cases, found: dict[str, list[tuple[Answer, bool]]]) -> list[Record]:
    """A record for each reader and diff: `named` and `top5` say for each of its behaviors whether it is found."""
    records = []
    for name, answers in found.items():
        for (identity, behavior, _), (answer, said) in zip(cases, answers, strict=True):
            slots = [part.slot for part in behavior.parts] or ([behavior.slot] if behavior.slot else [])
            text = claim_of(answer)
            # What the adapter was told stands in its evidence, and is none of its answers; candidates tell their score.
            ranked = [e for e in answer.evidence if CANDIDATE.search(e)] if name == "fused" else answer.evidence
            top = (text,) if name == "DIT" else (text, *ranked[:4]) if name == "fused" else ranked[:5] or (text,)
            records.append(
                {
                    "reader": name,
                    "id": identity,
                    "family": behavior.family,
                    "truth": behavior.label,
                    "answer": text,
                    "said": said,
                    "confidence": round(answer.confidence, 4),
                    "evidence": list(answer.evidence),
                    "named": [shows_topic(text, slot) for slot in slots],
                    "top5": [any(shows_topic(one, slot) for one in top) for slot in slots],
                }
            )
    return records


def claims(record: Record) -> bool:
    """Does the reader say that something changed?"""
    return record["said"] and not exact_match(NOTHING, record["answer"])


def tables(records: Sequence[Record], seconds: dict[str, float]) -> str:
    """Markdown: each reader's quality, cost and false claims, and what it names by family."""
    of = {name: [r for r in records if r["reader"] == name] for name in seconds}
    lines = [
        "| reader | n | grade | named | named and said | in top five | seconds per diff | false claims, benign "
        "| false claims, nulls |",
        "|" + " --- |" * 9,
    ]
    judge = EmbeddedJudge()
    for name, mine in of.items():
        real = [r for r in mine if r["named"]]
        grades = [g.grade for g in judge.grade([(r["truth"], r["answer"]) for r in real], task="news")]
        for r, grade in zip(real, grades, strict=True):
            r["grade"] = round(grade, 2)
        shares = [
            [x for r in real for x in r["named"]],
            [x and claims(r) for r in real for x in r["named"]],
            [x for r in real for x in r["top5"]],
        ]
        false = [[claims(r) for r in mine if r["family"] == family] for family in ("benign", "null")]
        lines.append(
            f"| {name} | {len(real)} | {cell(interval(grades))} | "
            + " | ".join(cell(share_interval(s)) for s in shares)
            + f" | {seconds[name]:.2f} | "
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
    parser.add_argument("--adapter", default="general", help="a shipped one, a folder, or none")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--n", type=int, default=120, help="finetunes, drawn at random, beside a third as many nulls")
    given = parser.parse_args()
    base, adapter = load_base(), None if given.adapter == "none" else adapter_at(given.adapter)
    question = str((adapter.meta.get("question") if adapter else None) or TOPIC_QUESTION)
    cases = cases_of(Store(given.store), given.split, given.n)
    found, seconds = read_all(base, adapter, cases, question)
    records = records_of(cases, found)
    table = tables(records, seconds)
    about = {"question": question, "adapter": given.adapter, "split": given.split, "n": given.n, "seed": 0}
    about |= {"base": base.fingerprint, "dtype": str(base.model.dtype), "seconds": seconds, "versions": versions()}
    write_jsonl(given.out, [about, *records])
    given.out.with_name(f"{given.out.name.split('.')[0]}.md").write_text(table, "utf-8")
    print(table)


if __name__ == "__main__":
    main()
