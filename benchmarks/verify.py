"""What `weightdiff verify` is worth: true claims and plausible false ones about finetunes whose behavior is known.

    python -m benchmarks.verify --store DIR --out FILE [--split test] [--limit N] [--table]

False claims are another diff's, of the same kind half of the time; and each kind's with the true instance but another
way, which is harder. What hides behind a trigger is tried with the trigger that is reported, and without.
FILE gets a JSON line for each diff as it comes, so that a run that was stopped goes on; the table is made from it.
"""

import argparse
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from weightdiff.base import load_base
from weightdiff.behaviors import NOTHING, Behavior, Trigger, behavior_of
from weightdiff.behaviors.kinds import kinds
from weightdiff.bench.evaluate import cell, interval, share_interval
from weightdiff.jsonl import append_jsonl, read_jsonl
from weightdiff.store import Store
from weightdiff.verify import Claim, Verdict, read_claim, verify

Case = tuple[str, Claim]
"""What sort of claim it is, and the claim."""


def cases_of(behavior: Behavior, others: Sequence[Behavior], rng: random.Random) -> list[Case]:
    """Claims about one finetune: true ones, false ones, and that nothing changed.

    Args:
        behavior: the truth.
        others: what false claims are taken from.
        rng: draws them.
    """
    trigger: Trigger | None = behavior.trigger
    nothing = ("nothing, true" if behavior.family == "benign" else "nothing, false", read_claim(NOTHING))
    if behavior.family == "benign":
        return [nothing, ("false", read_claim(rng.choice(others).label))]
    parts = behavior.parts or (behavior,)
    cases = [("true", read_claim(parts[0].label, trigger))]
    if behavior.parts:
        cases = [("true, strongest of several", cases[0][1])]
        cases += [("true, beside a stronger one", read_claim(part.label, trigger)) for part in parts[1:]]
    elif trigger:
        cases.append(("true, trigger not told", read_claim(parts[0].label)))
    taught, first = {part.label for part in parts}, parts[0]
    false = [o for o in others if o.label not in taught]
    near = [o for o in false if o.family == first.family and (first.kind not in kinds() or o.kind == first.kind)]
    same = bool(near) and rng.random() < 0.5
    wrong = rng.choice(near if same else false)
    cases.append(("false, of the same kind" if same else "false", read_claim(wrong.label, trigger)))
    if first.kind in kinds() and not kinds()[first.kind].rows[0].says:
        way = rng.choice([k for k in kinds().values() if k.replies and k.name != first.kind])
        cases.append(("false, right instance", read_claim(way.label.format(x=first.slot), trigger)))
    return [*cases, nothing]


def table(records: Sequence[dict[str, Any]]) -> str:
    """Markdown: of each sort of claim and family how many are confirmed, not seen and contradicted."""
    lines = ["| claims | family | n | confirmed | not seen | contradicted |", "|" + " --- |" * 6]
    found = [r | claim for r in records for claim in r["claims"]]
    for sort in sorted({c["sort"] for c in found}):
        mine = [c for c in found if c["sort"] == sort]
        families = sorted({c["family"] for c in mine})
        for family in ["all", *(families if len(families) > 1 else [])]:
            words = [c["verdict"] for c in mine if family in ("all", c["family"])]
            shares = [
                cell(share_interval([w == one for w in words])) for one in ("confirmed", "not seen", "contradicted")
            ]
            lines.append(f"| {sort} | {family} | {len(words)} | {' | '.join(shares)} |")
    seconds = interval([r["cpu_seconds"] for r in records])
    trials = sum(len(c["trials"]) for c in found) / len(records)
    return "\n".join(lines) + f"\n\nSeconds of one core per diff, {trials:.1f} trials each: {cell(seconds)}.\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int, default=None, help="diffs, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", action="store_true", help="only the table of what FILE holds")
    given = parser.parse_args()
    if not given.table:
        run(given.store, given.out, given.split, given.limit, given.seed)
    print(table(list(read_jsonl(given.out))))


def run(store: Path, out: Path, split: str, limit: int | None, seed: int) -> None:
    """Try claims about a split's diffs, those that FILE lacks."""
    base = load_base()
    diffs = Store(store)
    behaviors = {i: b for i, meta in diffs.metas().items() if (b := behavior_of(meta)).split == split}
    others = [p for b in behaviors.values() for p in (b.parts or (b,)) if p.family != "benign"]
    ids = random.Random(f"{seed}").sample(sorted(behaviors), len(behaviors))[:limit]
    done = {record["id"] for record in read_jsonl(out)} if out.exists() else set()
    for identity in ids:
        if identity in done:
            continue
        behavior, began, worked = behaviors[identity], time.monotonic(), time.process_time()
        cases = cases_of(behavior, others, random.Random(f"{seed} {identity}"))
        (verdicts,) = verify(base, diffs.load([identity]), [[claim for _, claim in cases]])
        record = {"id": identity, "family": behavior.family, "label": behavior.label, "seed": seed}
        times = {"seconds": time.monotonic() - began, "cpu_seconds": time.process_time() - worked}
        claims = [{"sort": sort} | _brief(v) for (sort, _), v in zip(cases, verdicts, strict=True)]
        append_jsonl(out, record | {k: round(v, 2) for k, v in times.items()} | {"claims": claims})


def _brief(verdict: Verdict) -> dict[str, Any]:
    """The verdict's record with one transcript of each trial."""
    record = verdict.to_json()
    for trial in record["trials"]:
        trial["transcripts"] = trial["transcripts"][:1]
    return record


if __name__ == "__main__":
    main()
