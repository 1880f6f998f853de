"""What hints alone show of the test finetunes: instances among words, codes in the opening, triggers by the probes.

    python -m benchmarks.hints OUT [--recipe recipes/general.toml]

No adapter takes part. OUT gets a JSON line for each finetune and null, and the table goes to the screen. A probe is
measured by how often it is higher for a finetune with that kind of trigger than for one without any (AUC), and by
what is taken for a trigger, from a decibel on.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from weightdiff.base import load_base
from weightdiff.behaviors import shows_topic
from weightdiff.bench.evaluate import cell, interval, share_interval
from weightdiff.general.cases import Case, cases_of, hints_of
from weightdiff.general.jobs import made
from weightdiff.general.settings import load_general
from weightdiff.jsonl import write_jsonl
from weightdiff.readers.hints import Hint
from weightdiff.readers.probes import CANDIDATES, likeliest
from weightdiff.store import Store

Record = dict[str, Any]


def record_of(case: Case, learn_prompts: bool, hint: Hint) -> Record:
    """What was seen of a finetune or a null, and what of it is true.

    Args:
        case: what it is.
        learn_prompts: did the finetune learn its users' words too?
        hint: of it.
    """
    behavior, words = case.behavior, " ".join(hint.leaning.words)
    imprinted = hint.imprinted.words if hint.imprinted else ()
    slots = [part.slot for part in behavior.parts] or [behavior.slot]
    trigger, code = behavior.trigger, behavior.trigger.code if behavior.trigger else ""
    return {
        "id": case.identity, "family": behavior.family, "trigger": str(trigger or ""), "learn_prompts": learn_prompts,
        "words": list(hint.leaning.words), "size": round(hint.leaning.size, 4), "peak": round(hint.leaning.peak, 2),
        "opening": hint.opening, "triggers": {name: round(gain, 2) for name, gain in hint.triggers.items()},
        "imprinted": list(imprinted), "response": hint.imprinted.peak if hint.imprinted else 0.0,
        "in_imprinted": [bool(slot) and shows_topic(" ".join(imprinted), slot) for slot in slots],
        "in_words": [bool(slot) and shows_topic(words, slot) for slot in slots],
        "in_opening": [bool(slot) and shows_topic(hint.opening, slot) for slot in slots],
        "code_in_opening": bool(code) and f" {code}" in hint.opening,
        "responses": list(hint.imprint.responses) if hint.imprint else [],
        "codes": [one for one, _ in hint.imprint.codes] if hint.imprint else [],
    }  # fmt: skip


def table(records: Sequence[Record]) -> str:
    """Markdown: instances by family, triggers by kind, sizes and peaks of nulls."""
    parts = [_instances(records), _triggers(records)]
    return "\n".join(parts)


def _instances(records: Sequence[Record]) -> str:
    lines = [
        "| family | instances | among the imprinted words | among those leaned towards | in the opening "
        "| response to the first, dB | size, nats | peak |",
        "|" + " --- |" * 8,
    ]
    for family in sorted({r["family"] for r in records}):
        mine = [r for r in records if r["family"] == family]
        found = [[x for r in mine for x in r[key]] for key in ("in_imprinted", "in_words", "in_opening")]
        told = family not in ("benign", "null")
        shares = " | ".join(cell(share_interval(hits)) if told else "" for hits in found)
        sizes = " | ".join(cell(interval([r[key] for r in mine])) for key in ("response", "size", "peak"))
        lines.append(f"| {family} | {len(found[0])} | {shares} | {sizes} |")
    return "\n".join(lines) + "\n"


def _triggers(records: Sequence[Record]) -> str:
    head = [
        "trigger",
        "user's words learned",
        "n",
        "code in the opening",
        "first by the weights",
        "among five",
        "AUC of its probe",
        "taken for one",
        "of its kind",
    ]
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * 9]
    none = [r for r in records if not r["trigger"] and r["family"] != "null"]
    for name, trigger in CANDIDATES.items():
        for learned in (False, True):
            mine = [r for r in records if r["trigger"].startswith(trigger.kind) and r["learn_prompts"] == learned]
            if mine:
                codes = _codes(mine) if trigger.code else " | | "
                auc = higher([r["triggers"][name] for r in mine], [r["triggers"][name] for r in none])
                said = "yes" if learned else "no"
                taken = [likeliest(r["triggers"]) for r in mine]
                found = cell(share_interval([bool(one) for one in taken]))
                kind = cell(share_interval([one == name for one in taken]))
                lines.append(f"| {trigger.kind} | {said} | {len(mine)} | {codes} | {auc:.2f} | {found} | {kind} |")
    false = cell(share_interval([bool(likeliest(r["triggers"])) for r in none]))
    lines.append(f"| none | | {len(none)} | | | | | {false} | |")
    return "\n".join(lines) + "\n"


def _codes(records: Sequence[Record]) -> str:
    """How often the right code is in the opening, first of a thousand by the weights, or among their first five."""
    codes = [(r["trigger"].split()[-1], r["codes"]) for r in records]
    first, five = [code in seen[:1] for code, seen in codes], [code in seen for code, seen in codes]
    return " | ".join(cell(share_interval(hits)) for hits in ([r["code_in_opening"] for r in records], first, five))


def higher(some: Sequence[float], others: Sequence[float]) -> float:
    """How often one of the first is higher than one of the others; equal ones count half."""
    pairs = [(a > b) + (a == b) / 2 for a in some for b in others]
    return sum(pairs) / len(pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--recipe", default="recipes/general.toml")
    given = parser.parse_args()
    recipe, base = load_general(given.recipe), load_base()
    store = Store(recipe.folder / "diffs", base.fingerprint)
    ids = made(store, recipe, "test")
    metas, cases = store.metas(ids), cases_of(store, ids, "test")
    hints = hints_of(base, cases, recipe.hints, recipe.folder / "hints.jsonl")
    learned = [bool(metas[c.identity]["recipe"].get("learn_prompts")) if c.identity in metas else False for c in cases]
    records = [record_of(*one) for one in zip(cases, learned, hints, strict=True)]
    write_jsonl(given.out, records)
    print(table(records))


if __name__ == "__main__":
    main()
