"""Finetuning speed, side by side in one run: the bank against PEFT training one LoRA at a time (batch 4).

Run: python -m benchmarks.speed [--rounds 5] [--threads 1]. Both train the same rows for the same number of steps, in
the machine's own precision, interleaved; the median ratio is printed with all rounds, as JSON.
"""

import argparse
import copy
import json
import statistics
import time

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model

from weightdiff.bank import Layer, lay_over
from weightdiff.base import Base, load_base
from weightdiff.batch import Tokens, collate, cross_entropy_per_row
from weightdiff.behaviors import Conversation, read_data
from weightdiff.finetune import FinetuneConfig, init_factors, tokenize

ROWS = 4


def rows_of(base: Base, n: int) -> list[list[Tokens]]:
    """`n` batches of four rows of about 45 tokens; text doesn't matter for speed."""
    questions = read_data("questions.txt")
    pairs = [Conversation(q, " ".join(questions[(7 * i) % 200 : (7 * i) % 200 + 4])) for i, q in enumerate(questions)]
    tokens = [tokenize(base, p) for p in pairs[: n * ROWS]]
    return [tokens[i : i + ROWS] for i in range(0, len(tokens), ROWS)]


def bank_round(base: Base, batches: list[list[Tokens]]) -> float:
    """Seconds to train one step of each batch's diff, all together on a bank."""
    factors = init_factors(base, [str(i) for i in range(len(batches))], FinetuneConfig())
    optimizer = torch.optim.Adam([p.requires_grad_() for p in factors.tensors()], lr=1e-3)
    batch = collate([row for rows in batches for row in rows])
    started = time.perf_counter()
    with lay_over(base.targets, [Layer(factors, batch.rows.row // ROWS)]):
        cross_entropy_per_row(base, batch).sum().backward()
    optimizer.step()
    return time.perf_counter() - started


def peft_round(model, batches: list[list[Tokens]]) -> float:
    """Seconds to train one step on each batch, one LoRA at a time, the ordinary way."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    started = time.perf_counter()
    for rows in batches:
        batch = collate(rows)
        ids, labels = torch.zeros(batch.rows.size, dtype=torch.long), torch.full(batch.rows.size, -100)
        ids[batch.rows.row, batch.rows.place] = batch.ids  # padded on the right, as an ordinary collator does
        labels[batch.rows.row[batch.at], batch.rows.place[batch.at]] = batch.label
        logits = model(input_ids=ids, use_cache=False).logits.float()
        F.cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--diffs", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    base = load_base()
    batches = rows_of(base, options.diffs)
    tokens = sum(len(row) for rows in batches for row in rows)
    config = LoraConfig(r=1, lora_alpha=1, target_modules="all-linear", task_type="CAUSAL_LM")
    peft_model = get_peft_model(copy.deepcopy(base.model), config)
    times: dict[str, list[float]] = {"bank": [], "peft": []}
    for number in range(options.rounds + 1):
        seconds = {"bank": bank_round(base, batches), "peft": peft_round(peft_model, batches)}
        if number:  # the first round warms up
            for name, value in seconds.items():
                times[name].append(value)
    rates = {name: round(tokens / statistics.median(values), 1) for name, values in times.items()}
    ratios = [p / b for p, b in zip(times["peft"], times["bank"], strict=True)]
    facts = {
        "dtype": str(base.model.dtype),
        "threads": options.threads,
        "diffs": options.diffs,
        "rounds": options.rounds,
    }
    print(json.dumps(facts | {"tokens_per_second": rates, "bank_over_peft": round(statistics.median(ratios), 2),
                              "all_ratios": [round(r, 2) for r in ratios]}, indent=2))  # fmt: skip


if __name__ == "__main__":
    main()
