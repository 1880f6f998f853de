"""Put measured tables into the pages of docs/ that have any: python -m benchmarks.pages [--check].

Each table stands between two comments that name it, and is replaced by the one in results/, so that a page never says
what no run gave. `--check` writes nothing, and fails where a page is not up to date.
"""

import json
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import codes, hints, honesty, left_out, outside, rounds, specialists, verify, ways
from weightdiff.bench.evaluate import cell
from weightdiff.jsonl import read_jsonl

ROOT = Path(__file__).parent.parent
NAMES = ("benchmark.md", "performance.md", "formats.md", "general.md", "results.md", "verify.md")
PAGES = tuple(ROOT / "docs" / name for name in NAMES)
RESULTS, SPEED = ROOT / "results" / "benchmark", ROOT / "results" / "speed" / "cpu.json"


def judges_table() -> str:
    """How far the judges agree, from `judge_noise`'s figures."""
    found = json.loads((RESULTS / "judge-noise.json").read_text("utf-8"))
    lines = ["| task: judges | n | Pearson [95 %] | mean difference [95 %] | same grade [95 %] |", "|" + " --- |" * 5]
    for name, row in found.items():
        if isinstance(row, dict):
            figures = " | ".join(cell(row[k]) for k in ("pearson", "mae", "equal"))
            lines.append(f"| {name} | {row['n']} | {figures} |")
    return "\n".join(lines) + "\n"


def speed_table() -> str:
    """All comparisons of `python -m benchmarks`, with what they were measured on."""
    found = json.loads(SPEED.read_text("utf-8"))
    machine = found["machine"]
    lines = ["| comparison | way | value | ratio | goal | |", "|" + " --- |" * 6]
    for name, result in found["results"].items():
        for i, line in enumerate(result["lines"]):
            verdict = "void" if result["void"] else {None: "", True: "reached", False: "missed"}[line["met"]]
            goal = "" if line["goal"] is None else f"{'≤' if line['at_most'] else '≥'} {line['goal']:g}"
            ratio = "" if line["ratio"] is None else f"{line['ratio']:.4g}"
            lines.append(f"| {'' if i else name} | {line['way']} | {_value(line)} | {ratio} | {goal} | {verdict} |")
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items())
    how = f"{found['base']['name']} in {found['dtype']}, {found['threads']} threads of {machine['cpu']}"
    return "\n".join(lines) + f"\n\n{how}, median of {found['rounds']} rounds, {found['date']}; {versions}.\n"


def right_base_table() -> str:
    """What `python -m benchmarks.right_base` found."""
    found = json.loads((ROOT / "results" / "right-base.json").read_text("utf-8"))
    lines = [
        "| diffs | n | z: least, median, most | as another model's | called right | of another's |",
        "|" + " --- |" * 6,
    ]
    for kind, row in found["min_median_max_by_kind"].items():
        z, other = (", ".join(f"{v:.1f}" for v in row[key]) for key in ("z", "z_shuffled"))
        lines.append(f"| {kind} | {row['n']} | {z} | {other} | {row['right_taken']} | {row['wrong_taken']} |")
    rows = list(found["min_median_max_by_kind"].values())
    n, right, wrong = (sum(row[key] for row in rows) for key in ("n", "right_taken", "wrong_taken"))
    losses = [f"{min(row[key][0] for row in rows):+.2f} to {max(row[key][2] for row in rows):+.2f}" for key in _LOSSES]
    lines += [
        "",
        f"In all: {right} of {n} called right, {wrong} of {n} of another's (z ≥ {found['threshold']:g}).",
        f"The loss on plain text changes by {losses[0]} nats under the diffs, and by {losses[1]} under another's.",
    ]
    return "\n".join(lines) + "\n"


_LOSSES = ("loss_added", "loss_added_shuffled")


def checkpoints_table() -> str:
    """What `python -m benchmarks.checkpoints` found."""
    found = json.loads((ROOT / "results" / "checkpoints.json").read_text("utf-8"))
    lines = ["| checkpoint | read as | energy kept | seconds | MiB added |", "|" + " --- |" * 5]
    for row in found["rows"]:
        said = "refused" if "refused" in row else row["format"]
        said += f", rank {row['rank']}" if "rank" in row else ""
        kept = f"{row['kept_energy']:.4f}" if "kept_energy" in row else ""
        lines.append(f"| {row['checkpoint']} | {said} | {kept} | {row['seconds']} | {row['added_mib']} |")
    about = (
        f"‖δ‖ / ‖W‖ is {found['size']} in each matrix; shards of {found['shard_mb']} MB; seed {found['seed']}, n = 1."
    )
    return "\n".join(lines) + f"\n\n{about}\n"


def verify_table() -> str:
    """How often verdicts were right, from the records of `python -m benchmarks.verify`."""
    return verify.table(list(read_jsonl(RESULTS / "verify.jsonl.xz")))


def honesty_table() -> str:
    """What is left of a general adapter's claims, from the records of `python -m benchmarks.honesty`."""
    return honesty.table(list(read_jsonl(RESULTS / "general" / "verdicts.jsonl")))


def left_out_table() -> str:
    """What is said of families that training left out, from the records of `python -m benchmarks.left_out`."""
    return left_out.table(list(read_jsonl(RESULTS / "general" / "left-out.jsonl.xz")))


def specialists_table() -> str:
    """The general adapter beside specialists, from the records of `python -m benchmarks.specialists`."""
    records, answers = RESULTS / "general" / "specialists.jsonl.xz", RESULTS / "general-words" / "answers.jsonl.xz"
    return specialists.table(list(read_jsonl(records)), list(read_jsonl(answers)))


def rounds_table() -> str:
    """The shipped general adapter beside that of a later round, as `python -m benchmarks.rounds` compares them."""
    return rounds.table(*(list(read_jsonl(RESULTS / n / "answers.jsonl.xz")) for n in ("general", "general-advice")))


def hints_table() -> str:
    """What hints show by themselves, from the records of `python -m benchmarks.hints`."""
    return hints.table(list(read_jsonl(RESULTS / "general" / "hints.jsonl")))


def ways_table() -> str:
    """Whether ways are told, from the records of `python -m benchmarks.ways`."""
    return ways.table(list(read_jsonl(RESULTS / "general" / "ways.jsonl")))


def codes_table() -> str:
    """Whether the right code moves a finetune further, from the records of `python -m benchmarks.codes`."""
    return codes.table(list(read_jsonl(RESULTS / "general" / "codes.jsonl")))


def readers_table(name: str) -> str:
    """Readers side by side, as `python -m benchmarks.rivals` wrote it."""
    return (RESULTS / f"{name}.md").read_text("utf-8")


def routing_table() -> str:
    """How often a question's sort is told, as `python -m benchmarks.routing --write` wrote it."""
    return (RESULTS / "general" / "routing.md").read_text("utf-8")


def outside_table(path: str) -> str:
    """What an adapter said of the finetunes from outside, from the records of `python -m benchmarks.outside`."""
    return outside.table(list(read_jsonl(ROOT / "results" / path))) + "\n"


def _value(line: dict[str, Any]) -> str:
    value = f"{line['value']:,.0f}" if abs(line["value"]) >= 1000 else f"{line['value']:.3g}"
    return f"{value} {line['unit']}"


def filled(page: str) -> str:
    """The page with every table as the results have it."""
    made = {
        "judges": judges_table, "speed": speed_table, "right-base": right_base_table, "checkpoints": checkpoints_table,
        "verify": verify_table, "honesty": honesty_table, "hints": hints_table, "codes": codes_table,
        "ways": ways_table,
        "alone": partial(readers_table, "readers-alone"), "readers": partial(readers_table, "readers-all"),
        "left-out": left_out_table, "specialists": specialists_table, "routing": routing_table,
        "rounds": rounds_table,
        "outside-advice": partial(outside_table, "benchmark/general-advice/outside.jsonl"),
        "outside-short": partial(outside_table, "benchmark/general-short/outside.jsonl"),
        "outside": partial(outside_table, "topics/outside.jsonl"),
        "outside-general": partial(outside_table, "benchmark/general/outside.jsonl"),
    }  # fmt: skip

    def table(found: re.Match[str]) -> str:
        name = found[1]
        text = made[name]() if name in made else (RESULTS / name / "table.md").read_text("utf-8")
        return f"<!-- {name} -->\n{text}<!-- end -->"

    return re.sub(r"<!-- ([\w-]+) -->\n.*?<!-- end -->", table, page, flags=re.DOTALL)


def main() -> None:
    for path in PAGES:
        page = path.read_text("utf-8")
        new = filled(page)
        if "--check" not in sys.argv[1:]:
            path.write_text(new, "utf-8")
        elif new != page:
            sys.exit(f"{path.name} is not what results/ has; run: python -m benchmarks.pages")


if __name__ == "__main__":
    main()
