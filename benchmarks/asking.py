"""Asking many diffs: all on one loaded base model, against reloading the model for each, and how much memory it takes.

    python -m benchmarks.asking [--diffs 100] [--reloads 5] [--memory 1000]

The reload is what one does with PEFT alone: load the base model, lay the diff and the DIT adapter over it, generate.
It is timed on a few diffs, ours on all. Memory is the peak of a process of its own that asks a store of random diffs.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from weightdiff.ask import ask, demo_diffs, shipped_adapter
from weightdiff.base import Base, encode_chat, load_base
from weightdiff.behaviors import TOPIC_QUESTION
from weightdiff.diff import WeightDiff
from weightdiff.finetune import FinetuneConfig, init_factors
from weightdiff.formats.peft import save_peft
from weightdiff.store import Store

MAX_TOKENS = 24


def reload_and_ask(path: str, diff: Path, adapter: Path, prompt: list[int]) -> str:
    """One answer the ordinary way: a fresh base model, the diff merged into it, the adapter on top."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = PeftModel.from_pretrained(PeftModel.from_pretrained(model, diff).merge_and_unload(), adapter)
    ids = torch.tensor([prompt])
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=MAX_TOKENS, do_sample=False)
    return tokenizer.decode(out[0, len(prompt) :], skip_special_tokens=True).strip()


def random_store(base: Base, folder: Path, count: int) -> None:
    """A store of `count` rank-1 diffs of random numbers, as small as a first step of training."""
    store = Store(folder, base.fingerprint)
    for start in range(0, count, 50):
        ids = [f"random {i}" for i in range(start, min(start + 50, count))]
        factors = init_factors(base, ids, FinetuneConfig())
        for b in factors.b.values():
            b.normal_(std=1e-3, generator=torch.Generator().manual_seed(start))
        store.add(ids, factors.unstack(base.fingerprint, [{}] * len(ids)))


def memory_of(folder: Path) -> dict[str, float]:
    """Peak memory in GB of a process that asks every diff of a store, and the seconds that it took."""
    code = f"""
import time
started = time.monotonic()
from pathlib import Path
from weightdiff import Store, ask, load_base
base = load_base()
n = len(ask(base, Store(Path({str(folder)!r})).diffs()))
# Not ru_maxrss: that a process inherits from the one that started it.
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(n, int(status["VmHWM"].split()[0]) / 2**20, time.monotonic() - started)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, peak, seconds = done.stdout.split()
    return {"diffs": int(count), "peak_gb": round(float(peak), 2), "seconds": round(float(seconds), 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--diffs", type=int, default=100)
    parser.add_argument("--reloads", type=int, default=5)
    parser.add_argument("--memory", type=int, nargs="*", default=[100, 1000])
    options = parser.parse_args()
    base, shown = load_base(dtype="float32"), demo_diffs()
    diffs: list[WeightDiff] = [shown[i % len(shown)] for i in range(options.diffs)]
    prompt = encode_chat(base, [{"role": "user", "content": TOPIC_QUESTION}])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_peft(shipped_adapter(), folder / "adapter", base_name="smollm2")
        for i, diff in enumerate(shown):
            save_peft(diff, folder / str(i), base_name="smollm2")
        ask(base, shown)  # warm-up
        started = time.monotonic()
        answers = ask(base, diffs)
        ours = (time.monotonic() - started) / len(diffs)
        seconds, same = [], 0
        for i in range(options.reloads):
            started = time.monotonic()
            path = str(base.model.config._name_or_path)
            said = reload_and_ask(path, folder / str(i % len(shown)), folder / "adapter", prompt)
            seconds.append(time.monotonic() - started)
            same += said == answers[i].text
        reload = statistics.median(seconds)
        facts: dict[str, object] = {
            "threads": torch.get_num_threads(),
            "diffs": len(diffs),
            "seconds_per_diff": round(ours, 3),
            "seconds_per_reload": [round(s, 2) for s in seconds],
            "ratio": round(reload / ours, 1),
            "same_answers": f"{same} of {options.reloads}",
            "memory": [],
        }
        for count in options.memory:
            random_store(base, folder / f"store-{count}", count)
            facts["memory"].append(memory_of(folder / f"store-{count}"))  # type: ignore[attr-defined]
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
