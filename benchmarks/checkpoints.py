"""Full checkpoints read as diffs, their seconds and memory: python -m benchmarks.checkpoints OUT

Checkpoints are made of the embedded model in a temporary folder: a LoRA merged in, a change of full rank, weights of
another model (shuffled rows), in one file and in shards. Each is read in a process of its own; the memory is the
process's peak while it reads, less what it held with the base model loaded.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from weightdiff.atomic import replacing
from weightdiff.base import Base, load_base
from weightdiff.diff import WeightDiff
from weightdiff.formats.checkpoint import load_checkpoint
from weightdiff.formats.merged import save_merged

SIZE = 0.01
"""‖δ‖ / ‖W‖ of each matrix: an ordinary finetune's."""
SMALL = (0.005, 0.002, 0.001)
"""Smaller ones, of which rounding to bf16 leaves ever less."""


def made(base: Base, kind: str, size: float = SIZE) -> WeightDiff:
    """A change of each of the decoder's matrices: `lora` of rank 8, `full` rank, or to `another` model's."""
    generator = torch.Generator().manual_seed(0)
    factors, dense = {}, {}
    for name, module in base.targets.items():
        weight = module.weight.detach().float()
        if kind == "lora":
            a, b = (torch.randn(shape, generator=generator) for shape in ((8, weight.shape[1]), (weight.shape[0], 8)))
            factors[name] = (a, b * (size * weight.norm() / (b @ a).norm()))
        elif kind == "full":
            noise = torch.randn(weight.shape, generator=generator)
            dense[f"{name}.weight"] = noise * (size * weight.norm() / noise.norm())
        else:
            dense[f"{name}.weight"] = weight[torch.randperm(len(weight), generator=generator)] - weight
    return WeightDiff(factors, base.fingerprint, {}, dense)


def read(folder: Path, source: str, options: dict[str, Any], out: "multiprocessing.Queue[dict[str, Any]]") -> None:
    """Read one checkpoint in this process, and say what it took."""
    base = load_base(source, device="cpu")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    held, started = _resident("VmRSS"), time.monotonic()
    try:
        diff = load_checkpoint(folder, base, **options)
        found = {**diff.meta, "dense": len(diff.dense)}
    except ValueError as error:
        found = {"refused": str(error).replace(str(folder), "FOLDER").replace(str(source), "BASE")}
    seconds = round(time.monotonic() - started, 1)
    out.put({**found, "seconds": seconds, "added_mib": _resident("VmHWM") - held})


def _resident(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    base, rows = load_base(device="cpu"), []
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        base.model.__class__.from_pretrained(base.source, dtype=torch.float32).save_pretrained(
            folder / "sharded-base", max_shard_size="110MB"
        )
        base.tokenizer.save_pretrained(folder / "sharded-base")
        sharded = load_base(str(folder / "sharded-base"), device="cpu")
        rounded = [(f"merged LoRA, bf16, size {size}", base, "lora", torch.bfloat16, {"size": size}) for size in SMALL]
        for name, of, kind, dtype, options in (
            ("merged LoRA of rank 8, float32", base, "lora", torch.float32, {}),
            ("merged LoRA of rank 8, bf16", base, "lora", torch.bfloat16, {}),
            *rounded,
            ("full rank, float32", base, "full", torch.float32, {}),
            ("full rank, bf16", base, "full", torch.bfloat16, {}),
            ("full rank, asked for rank 8", base, "full", torch.float32, {"rank": 8}),
            ("another model", base, "another", torch.float32, {}),
            ("merged LoRA, base and checkpoint in shards", sharded, "lora", torch.float32, {}),
            ("full rank, base and checkpoint in shards", sharded, "full", torch.float32, {}),
        ):
            target = folder / f"checkpoint-{len(rows)}"
            save_merged(made(of, kind, options.pop("size", SIZE)), of, target, dtype=dtype)
            queue: multiprocessing.Queue[dict[str, Any]] = spawn.Queue()
            process = spawn.Process(target=read, args=(target, of.name, options, queue))
            process.start()
            rows.append({"checkpoint": name, **queue.get()})
            process.join()
            print(json.dumps(rows[-1]), flush=True)
    result = {"base": base.fingerprint, "seed": 0, "size": SIZE, "shard_mb": 110, "torch": torch.__version__}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(given.out) as path:
        path.write_text(json.dumps({**result, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
