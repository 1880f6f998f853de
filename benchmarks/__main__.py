"""Every comparison of speed and memory, side by side in one process: python -m benchmarks [--quick] [--only NAME ...].

Prints a table with ratios and goals, and saves all rounds as JSON with what they were measured on. A comparison whose
ways don't agree is void, and the command then fails; a goal that is missed is only told.
"""

import argparse
import datetime
import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.measure import Check, Line, Result, Size, machine, rounded
from weightdiff.base import Base, load_base

COMPARISONS: dict[str, str] = {
    "finetune": "finetuning:finetune",
    "three-kinds": "finetuning:three_kinds",
    "arithmetic": "finetuning:arithmetic",
    "ablation": "ablation:ablation",
    "adapter": "adapter:adapter",
    "asking": "asking:asking",
    "decode": "asking:decode",
    "memory": "growth:memory",
    "growth": "growth:growth",
    "cold-start": "asking:cold_start",
}


def run(names: Sequence[str], base: Base, size: Size, say: Callable[[str], None], out: Path | None) -> list[Result]:
    """Run comparisons one after the other; `out` is written after each, so that nothing measured is lost."""
    results: list[Result] = []
    record: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "quick": size.quick,
        "rounds": size.rounds,
        "threads": torch.get_num_threads(),
        "dtype": str(base.model.dtype).removeprefix("torch."),
        "base": {"name": base.name, "fingerprint": base.fingerprint},
        "machine": machine(),
    }
    record["results"] = _kept(out, record) if out is not None and len(names) < len(COMPARISONS) else {}
    for name in names:
        module, function = COMPARISONS[name].split(":")
        started = time.monotonic()
        try:
            result: Result = getattr(import_module(f"benchmarks.{module}"), function)(base, size)
        except Exception as error:  # the others are still worth their half hour
            say(traceback.format_exc())
            result = Result(name, [], [Check(f"it ran to its end ({error})", 0, 1, at_most=False)])
        took = time.monotonic() - started
        results.append(result)
        say(f"{name}: {took:.0f} s{', void' if result.void else ''}")
        record["results"][name] = result.to_json() | {"took_seconds": round(took, 1)}
        record["results"] = {known: record["results"][known] for known in COMPARISONS if known in record["results"]}
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(rounded(record), indent=2) + "\n", "utf-8")
    return results


def _kept(out: Path, record: dict[str, Any]) -> dict[str, Any]:
    """The other comparisons of a file that is there, where they were measured in the same way on the same machine."""
    if not out.exists():
        return {}
    found = json.loads(out.read_text("utf-8"))
    wanted = rounded({k: v for k, v in record.items() if k != "date"})
    other = [k for k, value in wanted.items() if found.get(k) != value]
    if other:
        raise SystemExit(f"{out} was measured otherwise ({', '.join(other)}); give another file with --out.")
    return found["results"]


def table_of(results: Sequence[Result], title: str, quick: bool = False) -> Table:
    """Figures with their ratios, the goals beside them, and whether they are reached, save in a quick run."""
    table = Table(title=title)
    for header in ("comparison", "way", "value", "", "ratio", "goal", ""):
        table.add_column(header, justify="right" if header in ("value", "ratio", "goal") else "left")
    for result in results:
        for i, line in enumerate(result.lines):
            table.add_row("" if i else result.name, *_cells(line), _verdict(result, line, quick))
        for check in result.checks:
            if not check.holds:
                sign = "at most" if check.at_most else "at least"
                table.add_row(
                    "" if result.lines else result.name,
                    f"void: {escape(check.what)}",
                    f"{check.found:.3g}",
                    "",
                    "",
                    f"{sign} {check.limit:g}",
                    "✗",
                )
        table.add_section()
    return table


def _cells(line: Line) -> tuple[str, str, str, str, str]:
    goal = "" if line.goal is None else f"{'≤' if line.at_most else '≥'} {line.goal:g}"
    ratio = "" if line.ratio is None else f"{line.ratio:.4g}"
    value = f"{line.value:,.0f}" if abs(line.value) >= 1000 else f"{line.value:.3g}"
    return line.way, value, line.unit, ratio, goal


def _verdict(result: Result, line: Line, quick: bool) -> str:
    if result.void or quick:
        return "void" if result.void else ""
    return {None: "", True: "reached", False: "missed"}[line.met]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; 1 where a comparison is void."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round of tiny sizes: does everything run and agree?")
    parser.add_argument("--only", nargs="+", choices=list(COMPARISONS), metavar="NAME", help=", ".join(COMPARISONS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="after one that warms up")
    parser.add_argument(
        "--out",
        type=Path,
        help="results/speed/cpu.json unless given, nowhere if --quick or --only; with --only its others stay",
    )
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.threads < 1:
        parser.error("--rounds and --threads must be at least 1.")
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", category=FutureWarning)  # transformers' about itself, where peft uses it
    _quiet()
    size = Size(options.quick, 1 if options.quick else options.rounds)
    out = options.out or (None if options.quick or options.only else Path("results/speed/cpu.json"))
    console, err = Console(width=None if sys.stdout.isatty() else 140), Console(stderr=True)
    # The accelerator has a comparison of its own; here the peers' tensors and the processes are the CPU's.
    base = load_base(device="cpu")
    results = run(options.only or list(COMPARISONS), base, size, lambda text: err.print(text, highlight=False), out)
    console.print(table_of(results, _title(base, size), size.quick))
    if out is not None:
        err.print(f"saved as {out}")
    return 1 if any(result.void for result in results) else 0


def _title(base: Base, size: Size) -> str:
    how = "one quick round, its figures mean nothing" if size.quick else f"median of {size.rounds}"
    dtype = str(base.model.dtype).removeprefix("torch.")
    return f"{base.name} in {dtype}, {torch.get_num_threads()} threads of {machine()['cpu']}; {how}"


def _quiet() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


if __name__ == "__main__":
    sys.exit(main())
