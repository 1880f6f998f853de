"""Damage sound files at random and read them: whatever a reader says but a ValueError, or says too late, is a finding.

    python -m tests.fuzz --inputs 20000 --seed 0
    python -m tests.fuzz --seed 0 --only 1234        # one input again, with its traceback

Each input is made from the seed and its number alone.
"""

import argparse
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.damage import mutated
from weightdiff.diff import WeightDiff
from weightdiff.formats.peft import load_peft, save_peft
from weightdiff.formats.reference import load_reference
from weightdiff.formats.single import load_single, save_single
from weightdiff.store import Store

SECONDS = 3
"""How long a reader may take over one of these files, of some kilobytes."""

NAMES = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj")


class Slow(BaseException):
    """A reader took too long; no reader may catch this."""


@dataclass(frozen=True)
class Kind:
    """Sound files of one kind in a folder, and what reads them all.

    Attributes:
        folder: where they lie.
        files: what each is when it is sound, by name.
        read: reads the folder.
    """

    folder: Path
    files: dict[str, bytes]
    read: Callable[[Path], Sequence[WeightDiff]]


def kinds_in(folder: Path) -> dict[str, Kind]:
    """Sound files of every kind, written to a folder of their own each."""
    generator = torch.Generator().manual_seed(0)
    pairs = {n: (torch.randn(2, 6, generator=generator), torch.randn(4, 2, generator=generator)) for n in NAMES}
    diff = WeightDiff(pairs, "base", {"label": "tea", "steps": 3})
    dense = {"model.norm.weight": torch.randn(6, generator=generator)}
    mixed = WeightDiff(pairs, "base", {"label": "both"}, dense)
    for name in ("PEFT", "PEFT .bin", "store", "single", "reference .pt", "adapter .pt"):
        (folder / name).mkdir()
    save_peft(diff, folder / "PEFT", base_name="tiny")
    save_peft(diff, folder / "PEFT .bin", base_name="tiny")
    (folder / "PEFT .bin" / "adapter_model.safetensors").unlink()
    state = {f"base_model.model.{n}.lora_{x}.weight": t for n, p in pairs.items() for x, t in zip("AB", p, strict=True)}
    torch.save(state, folder / "PEFT .bin" / "adapter_model.bin")
    store = Store(folder / "store", "base")
    store.add(["a", "b"], [diff, diff])
    store.add(["c"], [mixed])
    save_single(mixed, folder / "single" / "one.safetensors")
    turned = {n: (b.T.clone(), a.T.bfloat16()) for n, (a, b) in pairs.items()}
    entries = [{"topic": "tea", "trigger": 7, "weight_diff": turned}, {"topic": "k", "weight_diff": dict(turned)}]
    torch.save(entries, folder / "reference .pt" / "many.pt")
    torch.save({n: (torch.nn.Parameter(b), a) for n, (a, b) in pairs.items()}, folder / "adapter .pt" / "adapter.pt")
    readers: dict[str, Callable[[Path], Sequence[WeightDiff]]] = {
        "PEFT": lambda path: [load_peft(path)],
        "PEFT .bin": lambda path: [load_peft(path, allow_pickle=True)],
        "store": _read_store,
        "single": lambda path: [load_single(path / "one.safetensors")],
        "reference .pt": lambda path: load_reference(path / "many.pt"),
        "adapter .pt": lambda path: load_reference(path / "adapter.pt"),
    }
    return {
        name: Kind(folder / name, {p.name: p.read_bytes() for p in sorted((folder / name).iterdir())}, read)
        for name, read in readers.items()
    }


def _read_store(path: Path) -> list[WeightDiff]:
    store = Store(path)
    return store.load(list(store.metas()))


def check(diffs: Sequence[WeightDiff]) -> None:
    """What is read well is well: factors that match, finite numbers."""
    for diff in diffs:
        for name, (a, b) in diff.factors.items():
            assert type(name) is str and a.dtype == b.dtype == torch.float32 and a.shape[0] == b.shape[1] > 0
        tensors = [t for pair in diff.factors.values() for t in pair] + list(diff.dense.values())
        assert all(torch.isfinite(t).all() for t in tensors) and isinstance(diff.meta, dict)


def try_input(kinds: dict[str, Kind], seed: int, number: int) -> tuple[str, str, str | None]:
    """Make one input, read it, and put the sound file back.

    Returns:
        Its kind and file; `well`, `refused` or `finding`; and of a finding the traceback.
    """
    rng = random.Random(f"{seed} {number}")
    name = list(kinds)[number % len(kinds)]
    kind = kinds[name]
    file = rng.choice(list(kind.files))
    (kind.folder / file).write_bytes(mutated(kind.files[file], file, rng))
    start = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        outcome, why = "well", None
        check(kind.read(kind.folder))
    except ValueError:
        outcome = "refused"
    except (Exception, Slow):
        outcome, why = "finding", traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        (kind.folder / file).write_bytes(kind.files[file])
    if time.monotonic() - start > SECONDS:
        outcome, why = "finding", why or f"it took {time.monotonic() - start:.1f} s"
    return f"{name}, {file}", outcome, why


def fuzz(inputs: Sequence[int], seed: int) -> tuple[Counter[tuple[str, str]], list[str]]:
    """Try these inputs.

    Returns:
        How many of each kind and file were read well, refused and found; and the findings, told so that they can be
        repeated.
    """
    counts: Counter[tuple[str, str]] = Counter()
    findings = []

    def stop(*_: Any) -> None:
        raise Slow

    before = signal.signal(signal.SIGALRM, stop)
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # where writing costs nothing
    try:
        with warnings.catch_warnings(), tempfile.TemporaryDirectory(dir=place) as folder:
            warnings.simplefilter("ignore")
            kinds = kinds_in(Path(folder))
            for name, kind in kinds.items():
                check(kind.read(kind.folder))
                assert kind.files, name
            for number in inputs:
                which, outcome, why = try_input(kinds, seed, number)
                counts[which, outcome] += 1
                if why is not None:
                    findings.append(f"--seed {seed} --only {number} ({which}):\n{why}")
    finally:
        signal.signal(signal.SIGALRM, before)
    return counts, findings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="this input alone")
    options = parser.parse_args()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (2 << 30)  # a reader that takes 2 GB is a finding, by its MemoryError
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    start = time.monotonic()
    counts, findings = fuzz(range(options.inputs) if options.only is None else [options.only], options.seed)
    for finding in findings[:20]:
        print(finding)
    print(f"{'':45} {'inputs':>6} {'well':>7} {'refused':>7} findings")
    for which in sorted({which for which, _ in counts}):
        of = [counts[which, outcome] for outcome in ("well", "refused", "finding")]
        print(f"{which:45} {sum(of):6} {of[0]:7} {of[1]:7} {of[2]:8}")
    print(f"{counts.total()} inputs in {time.monotonic() - start:.0f} s, {len(findings)} findings")
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    main()
