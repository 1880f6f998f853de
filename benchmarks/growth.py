"""How memory grows with a finetuning step, and time and memory with a store of diffs.

    python -m benchmarks --only memory growth

Each peak is that of a process of its own. Stores are of random rank-1 diffs on all linear layers, 0.6 MB each, and stay
in the cache folder under `bench/`: the largest has 6 GB.
"""

import itertools
import random
import shutil
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.finetuning import work_of
from benchmarks.measure import Check, Line, Result, Size, interleave, peak_of
from weightdiff.ask import ask
from weightdiff.base import Base, cache_dir, load_base
from weightdiff.finetune import FinetuneConfig, init_factors
from weightdiff.store import Store

BATCH = 32
"""Diffs read at a time, as many as `ask` and adapter training take."""
OPENINGS = 5
"""How many times a store is opened, since once is too short for the clock."""
FLAT = 1.1
"""How much more the largest store may take than the smallest."""
STAGES = OPEN, LIST, READ, READ_ANY, ASK = ("open", "list all", "read in order", "read at random", "ask")
SHARD = 50
"""Diffs that are written to a store together."""


def step_peak(ready: Callable[[], None], diffs: int, rows: int) -> dict[str, Any]:
    """One step of finetuning, for `measure.peak_of`."""
    work = work_of(load_base(), diffs, steps=1, learn=rows, short=True)
    ready()
    work.ours()
    return {"tokens": work.tokens, "parameters": sum(p.numel() for p in work.start.tensors())}


def memory(base: Base, size: Size) -> Result:
    """Peak memory of one finetuning step for more and more diffs, a row each; and for one diff with as many rows."""
    counts = size.pick([1, 16, 64, 256], [1, 8])
    peaks = {n: peak_of("benchmarks.growth", "step_peak", diffs=n, rows=1) for n in counts}
    middle = counts[-2] if len(counts) > 2 else counts[-1]
    alone = peak_of("benchmarks.growth", "step_peak", diffs=1, rows=middle)
    grown = {n: p["peak_gb"] - p["ready_gb"] for n, p in peaks.items()}
    low, high = counts[0], counts[-1]
    slope = (grown[high] - grown[low]) / (peaks[high]["tokens"] - peaks[low]["tokens"])
    lines = []
    for n, p in peaks.items():
        straight = grown[low] + slope * (p["tokens"] - peaks[low]["tokens"])
        ratio = grown[n] / straight
        label = f"{n} diff{'s' if n > 1 else ''}, {p['tokens']:,} tokens, {p['parameters'] / 1e6:.1f} M parameters"
        # The first and the last point make the straight line; those between are to lie on it, or below.
        goal = 1.1 if n not in (low, high) else None
        lines.append(Line(label, p["peak_gb"], "GB", ratio if goal else None, goal, at_most=True))
    per_diff = 1000 * (peaks[middle]["peak_gb"] - alone["peak_gb"]) / (middle - 1)
    # Numbers of a whole model's `B A`, in the model's precision: what a diff must not take.
    dense = sum(m.weight.numel() * m.weight.element_size() for m in base.targets.values()) / 2**20
    lines.append(Line(f"1 diff, {middle} rows, {alone['tokens']:,} tokens", alone["peak_gb"], "GB"))
    lines.append(Line("each diff more, at the same tokens", per_diff, "MB", per_diff / dense, 0.2, at_most=True))
    facts = {
        "gb_per_1000_tokens": 1000 * slope,
        "dense_product_mb": dense,
        "peaks": {str(n): p for n, p in peaks.items()} | {"1 diff": alone},
    }
    return Result("memory", lines, [], facts)


def random_store(base: Base, count: int) -> Path:
    """A store of `count` rank-1 diffs of random numbers, as small as after a first step; made once."""
    folder = cache_dir() / "bench" / f"rank1-{base.fingerprint}-{count}"
    if (folder / "complete").exists():
        return folder
    free = shutil.disk_usage(cache_dir()).free / 2**30
    if free < (needed := count * 0.6 / 1000 + 1):
        raise ValueError(f"a store of {count} diffs needs {needed:.0f} GB in {cache_dir()}, which has {free:.0f}.")
    store = Store(folder, base.fingerprint)
    for start in range(0, count, SHARD):
        ids = [f"random {i}" for i in range(start, min(start + SHARD, count))]
        factors = init_factors(base, ids, FinetuneConfig())
        for b in factors.b.values():
            b.normal_(std=1e-3, generator=torch.Generator().manual_seed(start))
        store.add(ids, factors.unstack(base.fingerprint, [{"label": i} for i in ids]))
    (folder / "complete").touch()
    return folder


def use(base: Base, folder: Path, sample: int, batch: int, rng: random.Random) -> dict[str, Any]:
    """Open a store, read batches of it, and ask some of its diffs: seconds of each, and the answers."""
    count = int(folder.name.rpartition("-")[2])
    first = rng.randrange(count - sample + 1)
    in_order = [f"random {i}" for i in range(first, first + sample)]
    clock = [time.perf_counter()]
    for _ in range(OPENINGS):
        store = Store(folder)
    clock.append(time.perf_counter())
    everything = store.diffs()
    clock.append(time.perf_counter())
    read = everything[first : first + batch]
    clock.append(time.perf_counter())
    store.load([f"random {i}" for i in rng.sample(range(count), batch)])
    clock.append(time.perf_counter())
    answers = ask(base, store.diffs(in_order))
    clock.append(time.perf_counter())
    seconds = dict(zip(STAGES, (b - a for a, b in itertools.pairwise(clock)), strict=True))
    right = [d.meta["label"] for d in read] == in_order[:batch] and len(everything) == count
    return {"seconds": seconds, "right": right, "answers": [a.text for a in answers]}


def use_peak(ready: Callable[[], None], folder: str, sample: int, batch: int) -> dict[str, Any]:
    """The same once, for `measure.peak_of`."""
    base = load_base()
    ready()
    use(base, Path(folder), sample, batch, random.Random(0))
    return {}


def growth(base: Base, size: Size) -> Result:
    """Time per diff and peak memory of the same work on larger and larger stores."""
    counts, sample, batch = size.pick(([100, 1000, 10000], 64, BATCH), ([8, 24], 4, 4))
    stores, rng = {n: random_store(base, n) for n in counts}, random.Random(0)
    peaks = {
        n: peak_of("benchmarks.growth", "use_peak", folder=str(folder), sample=sample, batch=batch)["peak_gb"]
        for n, folder in stores.items()
    }
    for folder in stores.values():  # into the page cache: the disk is not what is compared
        for path in folder.glob("shard-*.safetensors"):
            path.read_bytes()
    ways = {str(n): partial(use, base, folder, sample, batch, rng) for n, folder in stores.items()}
    _, found = interleave(ways, size)
    seconds = {
        f"{stage}, {n} diffs": [use["seconds"][stage] for use in found[str(n)]] for stage in STAGES for n in counts
    }
    # What is asked of all diffs is told per diff of the store, the rest per diff that was read or asked, or as it is.
    units = {OPEN: ("ms", lambda n: 1e3 / OPENINGS), LIST: ("µs/diff", lambda n: 1e6 / n)}
    units |= {s: ("ms/diff", lambda n: 1e3 / batch) for s in (READ, READ_ANY)} | {
        ASK: ("ms/diff", lambda n: 1e3 / sample)
    }
    lines = []
    for stage, (unit, scale) in units.items():
        values = {n: scale(n) * statistics.median(seconds[f"{stage}, {n} diffs"]) for n in counts}
        lines.append(_growing(stage, values, unit))
    lines.append(_growing("peak memory", peaks, "GB"))
    least = min(float(use["right"]) for uses in found.values() for use in uses)
    answers = [len(use["answers"]) == sample and all(use["answers"]) for uses in found.values() for use in uses]
    checks = [
        Check("the diffs read are those wanted", least, 1.0, at_most=False),
        Check("every diff has an answer", float(all(answers)), 1.0, at_most=False),
    ]
    facts = {"stores": counts, "sample": sample, "batch": batch, "shard": SHARD, "files": "in the page cache"}
    return Result("growth", lines, checks, facts | {"peak_gb": {str(n): p for n, p in peaks.items()}}, seconds)


def _growing(what: str, values: dict[int, float], unit: str) -> Line:
    """A figure of stores of several sizes; the largest store's is the value, and is held against the smallest's."""
    label = f"{what}: " + ", ".join(f"{value:.3g} at {n:,}" for n, value in values.items())
    return Line(label, values[max(values)], unit, values[max(values)] / values[min(values)], FLAT, at_most=True)
