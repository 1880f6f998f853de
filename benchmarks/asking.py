"""Asking: many diffs on one loaded base model against a reload for each and PEFT's mixed batch; decoding; a cold start.

    python -m benchmarks --only asking decode cold-start

The reload and the mixed batch are timed on fewer diffs than ours, the same ones that ours begins with.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

from benchmarks.measure import Check, Line, Result, Size, interleave, rate, same, speedup
from benchmarks.peers import MixedBatch, reload_and_ask
from weightdiff.ask import ask, demo_diffs, shipped_adapter
from weightdiff.bank import Layer
from weightdiff.base import Base, encode_chat
from weightdiff.behaviors import TOPIC_QUESTION
from weightdiff.decode import Reply
from weightdiff.decode import decode as decode_rows
from weightdiff.diff import WeightDiff, stack
from weightdiff.formats.peft import save_peft

MAX_TOKENS = 24
"""Most tokens of an answer, as in `ask_all`."""
SAME_ANSWERS = 0.9
"""Share of answers that must be the same to the letter; in bf16 a near tie may fall to the other side."""
SAME_TOKENS = 0.8
"""Share of replies whose first tokens must be the same at every batch size; free text has more near ties."""


def asking(base: Base, size: Size) -> Result:
    """Seconds per diff for one question."""
    count, mixed, slots = size.pick((100, 32, 16), (4, 2, 2))
    shown, dit = demo_diffs(), shipped_adapter()
    # The eight demo diffs at several strengths, so that no two are the same.
    diffs = [shown[i % len(shown)].scaled(1 - 0.02 * (i // len(shown))) for i in range(count)]
    prompt = encode_chat(base, [{"role": "user", "content": TOPIC_QUESTION}])
    batch = MixedBatch(base, slots, max(d.rank for d in shown) + dit.rank)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_peft(dit, folder / "adapter", base_name="smollm2")
        for i in range(size.rounds + 1):
            save_peft(diffs[i], folder / str(i), base_name="smollm2")
        number = iter(range(size.rounds + 1))

        def reload() -> tuple[int, str]:
            i = next(number)
            return i, reload_and_ask(base, folder / str(i), folder / "adapter", prompt, MAX_TOKENS)

        seconds, found = interleave(
            {
                "ours": lambda: [a.text for a in ask(base, diffs, TOPIC_QUESTION, adapter=dit)],
                "peft mixed": lambda: batch.ask(diffs[:mixed], dit, prompt, MAX_TOKENS),
                "reload": reload,
            },
            size,
        )
    ours = found["ours"][-1]
    lines = [
        Line("ours", 1000 / rate(count, seconds["ours"]), "ms/diff"),
        Line(
            f"PEFT, mixed batch of {slots}",
            1000 / rate(mixed, seconds["peft mixed"]),
            "ms/diff",
            speedup(seconds["ours"], seconds["peft mixed"], count / mixed),
            5.0,
        ),
        Line(
            "reload per diff",
            1000 / rate(1, seconds["reload"]),
            "ms/diff",
            speedup(seconds["ours"], seconds["reload"], count),
            20.0,
        ),
    ]
    checks = [
        Check("same answers, mixed batch", same(found["peft mixed"][-1], ours[:mixed]), SAME_ANSWERS, at_most=False),
        Check(
            "same answers, reload",
            same([text for _, text in found["reload"]], [ours[i] for i, _ in found["reload"]]),
            SAME_ANSWERS,
            at_most=False,
        ),
    ]
    facts = {"diffs": count, "diffs_mixed": mixed, "diffs_reload": size.rounds, "answers": ours[: len(shown)]}
    return Result("asking", lines, checks, facts, seconds)


def decode(base: Base, size: Size) -> Result:
    """Tokens per second at several batch sizes, each row under its own diff."""
    tokens, first = size.pick((32, 8), (4, 2))
    batches = size.pick([1, 4, 16, 64], [1, 4])
    most, shown = max(batches), demo_diffs()
    diffs: list[WeightDiff] = [shown[i % len(shown)].scaled(0.5 - 0.02 * (i // len(shown))) for i in range(most)]
    # One prompt for all: rows of one length. What it asks for takes more words than a row may have.
    prompt = encode_chat(base, [{"role": "user", "content": "Tell me a long story about a journey by sea."}])

    def run(batch: int) -> list[Reply]:
        found = []
        # The first few rows alone, four at a time, and so on; a rate needs no more of them.
        for at in range(0, min(most, 4 * batch), batch):
            layer = Layer(stack(diffs[at : at + batch], base.shapes).to(base.device), torch.arange(batch))
            found += decode_rows(base, [prompt] * batch, layers=[layer], max_tokens=tokens)
        return found

    seconds, found = interleave({f"batch {b}": partial(run, b) for b in batches}, size)
    made = {b: sum(len(r.tokens) for r in found[f"batch {b}"][-1]) for b in batches}
    lines = [Line("batch 1", rate(made[1], seconds["batch 1"]), "tokens/s")]
    for b in batches[1:]:
        ratio = speedup(seconds[f"batch {b}"], seconds["batch 1"], made[b] / made[1])
        goal = 15.0 if b == 64 else None
        lines.append(Line(f"batch {b}", rate(made[b], seconds[f"batch {b}"]), "tokens/s", ratio, goal))
    starts = {b: [r.tokens[:first] for r in found[f"batch {b}"][-1]] for b in batches}
    checks = [
        Check(
            f"same first {first} tokens, batch {b} and {most}",
            same(starts[b], starts[most][: len(starts[b])]),
            SAME_TOKENS,
            at_most=False,
        )
        for b in batches[:-1]
    ]
    facts = {"tokens_per_row": tokens, "tokens_made": made, "prompt_tokens": len(prompt)}
    return Result("decode", lines, checks, facts, seconds)


_STAGES = """
import time; times = [time.perf_counter()]
def done(): times.append(time.perf_counter())
import torch; done()
import transformers; from transformers import AutoModelForCausalLM, AutoTokenizer; done()
from weightdiff.ask import ask, shipped_adapter; from weightdiff.base import load_base; done()
from weightdiff.formats.peft import load_peft; diff, adapter = load_peft({folder!r}), shipped_adapter(); done()
base = load_base(); done()
ask(base, [diff], adapter=adapter); done()
print(*(b - a for a, b in zip(times, times[1:])))
"""
_STAGE_NAMES = ("import torch", "import transformers", "import weightdiff", "read the diff", "load the base", "answer")


def cold_start(base: Base, size: Size) -> Result:
    """`weightdiff ask` on one diff, from the start of the process to its end, and where the time goes."""
    folder = Path(__file__).parent.parent / "weightdiff" / "data" / "demo" / "0"
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "HF_HUB_OFFLINE": "1"}
    command = "from weightdiff.cli import main; main()"

    def run(code: str, *arguments: str) -> str:
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment)
        if done.returncode:
            raise RuntimeError(f"a cold start failed:\n{done.stderr[-2000:]}")
        return done.stdout

    def stages() -> list[float]:
        started = time.perf_counter()
        inside = [float(s) for s in run(_STAGES.format(folder=str(folder))).split()]
        return [*inside, time.perf_counter() - started - sum(inside)]

    ways = {"ask": lambda: run(command, "ask", str(folder), "--json"), "stages": stages}
    seconds, found = interleave(ways, size)
    names = [*_STAGE_NAMES, "start and end Python"]
    where = {name: [times[i] for times in found["stages"]] for i, name in enumerate(names)}
    median = statistics.median(seconds["ask"])
    lines = [Line("weightdiff ask, one diff", median, "s", median, 6.0, at_most=True)]
    lines += [Line(f"  of that: {name}", statistics.median(values), "s") for name, values in where.items()]
    answer = ask(base, demo_diffs()[:1], TOPIC_QUESTION)[0].text
    told = sum(answer in text for text in found["ask"]) / len(found["ask"])
    checks = [Check("the command line's answer is the library's", told, 1.0, at_most=False)]
    return Result("cold-start", lines, checks, {"files": "in the page cache"}, seconds | where)
