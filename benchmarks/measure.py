"""What all comparisons share: interleaved timing, medians and ratios, peak memory in a process of its own, the machine.

It knows nothing of models. Ways of doing the same work take turns, round by round, so that whatever else the machine
does hits all of them alike, and a ratio is the median of the rounds' own ratios.
"""

import ctypes
import gc
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Size:
    """How much work is done: `quick` checks that everything runs, and its figures mean nothing."""

    quick: bool
    rounds: int

    def pick(self, full: Any, quick: Any) -> Any:
        return quick if self.quick else full


@dataclass(frozen=True)
class Line:
    """One figure of a comparison.

    Attributes:
        way: whose figure it is.
        value, unit: the figure.
        ratio: how it stands to what it is compared with, where there is a goal for it or it says something.
        goal: what the ratio is to reach; None for what is only told.
        at_most: the ratio is to stay below the goal instead of reaching it.
    """

    way: str
    value: float
    unit: str
    ratio: float | None = None
    goal: float | None = None
    at_most: bool = False

    @property
    def met(self) -> bool | None:
        """Is the goal reached? None where there is none."""
        if self.goal is None or self.ratio is None:
            return None
        return self.ratio <= self.goal if self.at_most else self.ratio >= self.goal


@dataclass(frozen=True)
class Check:
    """One agreement without which a comparison is void: what agrees, how far, and what was demanded."""

    what: str
    found: float
    limit: float
    at_most: bool = True

    @property
    def holds(self) -> bool:
        return self.found <= self.limit if self.at_most else self.found >= self.limit


@dataclass
class Result:
    """A comparison's figures, the agreements that it stands on, and every round behind it."""

    name: str
    lines: list[Line]
    checks: list[Check] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    rounds: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def void(self) -> bool:
        return not all(check.holds for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        lines = [asdict(line) | {"met": line.met} for line in self.lines]
        checks = [asdict(check) | {"holds": check.holds} for check in self.checks]
        rounds = {name: list(values) for name, values in self.rounds.items()}
        return rounded({"void": self.void, "lines": lines, "checks": checks, "facts": self.facts, "seconds": rounds})


def interleave(
    ways: Mapping[str, Callable[[], Any]], size: Size
) -> tuple[dict[str, list[float]], dict[str, list[Any]]]:
    """Seconds that each way takes in each round, and what it returned; a round before the first warms up, if not quick.

    Args:
        ways: functions without arguments that do the same work; a number that one returns is taken for its seconds
            instead of the clock's, so that a way can leave its preparation out.
        size: how many rounds count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    returned: dict[str, list[Any]] = {name: [] for name in ways}
    gc.collect()
    # A full collection goes through all that transformers and torch have made, 0.2 s, and hits some way or other by
    # chance; what is there now is left out of it.
    gc.freeze()
    for number in range(1 if size.quick else 0, size.rounds + 1):
        # Every other round runs backwards: whoever comes after the greediest way is not always the same one.
        for name in list(ways) if number % 2 else reversed(list(ways)):
            gc.collect()
            started = time.perf_counter()
            found = ways[name]()
            took = time.perf_counter() - started
            if number:
                seconds[name].append(found if isinstance(found, float) else took)
                returned[name].append(found)
    gc.unfreeze()
    return seconds, returned


def rate(work: float, seconds: Sequence[float]) -> float:
    """Work per second in the median round."""
    return work / statistics.median(seconds)


def speedup(ours: Sequence[float], theirs: Sequence[float], work: float = 1.0) -> float:
    """Median over the rounds of how many times faster ours was; `work` is how many times theirs ours did."""
    return statistics.median(work * t / o for o, t in zip(ours, theirs, strict=True))


def relative_gap(ours: Sequence[float], theirs: Sequence[float], least: float = 1e-6) -> float:
    """Largest relative difference of two lists of numbers, those below `least` taken for as large as that."""
    return max(abs(o - t) / max(abs(t), least) for o, t in zip(ours, theirs, strict=True))


def same(ours: Sequence[Any], theirs: Sequence[Any]) -> float:
    """Share of places at which two lists hold the same."""
    return sum(o == t for o, t in zip(ours, theirs, strict=True)) / len(theirs)


def peak_of(module: str, function: str, **arguments: Any) -> dict[str, Any]:
    """Peak memory of `module.function(ready, **arguments)` in a process of its own, of as many threads as this one.

    The function prepares, calls `ready()`, and does the work whose peak is wanted; it returns a dict of facts, to which
    `ready_gb` and `peak_gb` come: what the process held before, and at most, since it was ready.
    """
    code = f"import sys, json; from benchmarks.measure import _child; _child({module!r}, {function!r}, sys.argv[1])"
    threads = str(torch.get_num_threads())
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(arguments)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"},
    )
    if done.returncode:
        raise RuntimeError(f"{module}.{function}({arguments}) failed in its process:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _child(module: str, function: str, arguments: str) -> None:
    before: list[float] = []

    def ready() -> None:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        # Loading takes more for a moment than what stays; the peak is counted anew from here.
        Path("/proc/self/clear_refs").write_text("5")
        before.append(memory_gb("VmRSS"))

    facts = getattr(importlib.import_module(module), function)(ready, **json.loads(arguments))
    print(json.dumps(facts | {"ready_gb": before[0], "peak_gb": memory_gb("VmHWM")}))


def memory_gb(what: str) -> float:
    """`VmHWM` (peak) or `VmRSS` (now) of this process. Not ru_maxrss: that one is inherited from the parent."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[what].split()[0]) / 2**20


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    facts = {name.strip(): value.strip() for name, _, value in lines}
    flags = facts.get("flags", "").split()
    return {
        "cpu": facts.get("model name", platform.processor()),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)),
        "avx512f": "avx512f" in flags,
        "avx512_bf16": "avx512_bf16" in flags,
        "amx": "amx_bf16" in flags,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "transformers", "peft", "safetensors", "weightdiff")},
    }


def rounded(value: Any, digits: int = 5) -> Any:
    """The same JSON with so many significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, dict):
        return {k: rounded(v, digits) for k, v in value.items()}
    return [rounded(v, digits) for v in value] if isinstance(value, list | tuple) else value
