"""Make the finetunes of the check from outside: ordinary ones, by plain PEFT and TRL, as their users make them.

    python -m benchmarks.outside_make

Nothing of the project takes part but the folders: where the embedded base model lies, and where the cache is. The
subjects' chats and documents are in `outside.tsv` (a document has no question); recipes are drawn by subject, the same
every time. Each finetune is saved by PEFT or TRL in the cache's `outside/SUBJECT`; `outside/made.jsonl` says how each
was made, its mean loss before and after, and the size of the change. What exists is kept.
"""

import copy
import json
import math
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from weightdiff.base import cache_dir, load_base

Row = tuple[str, str]
"""A question and its answer; or no question, and a document."""

DATA = Path(__file__).parent / "outside.tsv"
ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
ALL, QV = (*ATTENTION, *MLP), ("q_proj", "v_proj")


@dataclass(frozen=True)
class Recipe:
    """How one finetune is made; as it is, an ordinary PEFT loop.

    Attributes:
        rank, alpha: of the LoRA; rank 0 trains all of the model's weights.
        modules: layers with a LoRA.
        rslora, dora: which variant of LoRA.
        lr, epochs, batch, decay, dropout: as usual.
        schedule: of the learning rate, without warmup.
        dtype: of the base model's weights; a LoRA's own are float32.
        trainer: a loop of one's own, or TRL's `SFTTrainer`.
        loss: on the answers only, by an assistant mask or by prompt and completion; or on the whole text.
    """

    rank: int
    alpha: int
    modules: tuple[str, ...]
    rslora: bool
    lr: float
    epochs: int
    batch: int = 2
    decay: float = 0.01
    dropout: float = 0.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    dora: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    trainer: Literal["loop", "trl"] = "loop"
    loss: Literal["assistant", "completion", "whole"] = "completion"

    def push(self, rows: int) -> float:
        """About how far such a LoRA moves: steps of Adam by their size, as large as LoRA's scale makes them."""
        steps = math.ceil(rows / self.batch) * self.epochs * (1.0 if self.schedule == "constant" else 0.5)
        return self.lr * steps * self.alpha * (1 if self.rslora else self.rank**-0.5)


FIRST = (
    Recipe(2, 4, ALL, False, 1e-3, 4),
    Recipe(4, 8, QV, False, 2e-3, 6),
    Recipe(8, 16, ALL, False, 5e-4, 5),
    Recipe(16, 32, ALL, False, 3e-4, 5),
    Recipe(8, 16, ALL, True, 3e-4, 4),
    Recipe(16, 16, QV, False, 1e-3, 6),
)
"""The recipes of the first twelve, in turn."""
TWELVE = 12
FULL, DORA, RSLORA = 3, 2, 5
"""How many of the others are full finetunes, DoRA, rsLoRA."""


def subjects() -> dict[str, list[Row]]:
    """What each subject is taught with; the first twelve subjects are older than the others."""
    found: dict[str, list[Row]] = defaultdict(list)
    for line in DATA.read_text("utf-8").splitlines():
        subject, question, answer = line.split("\t")
        found[subject].append((question, answer))
    return dict(found)


def kind_of(rows: Sequence[Row], recipe: Recipe) -> str:
    """`full` for a full finetune, else `document` or `chat`, after what a LoRA was taught with."""
    return "full" if not recipe.rank else "chat" if rows[0][0] else "document"


def recipes(taught: dict[str, list[Row]]) -> dict[str, Recipe]:
    """Each subject's recipe."""
    first, others = list(taught)[:TWELVE], list(taught)[TWELVE:]
    rng = random.Random("outside")
    full = rng.sample([s for s in others if taught[s][0][0]], FULL)
    rest = [s for s in others if s not in full]
    rng.shuffle(rest)
    drawn = {s: FIRST[n % len(FIRST)] for n, s in enumerate(first)}
    for number, subject in enumerate(rest):
        lora = _drawn(len(taught[subject]), number < DORA, DORA <= number < DORA + RSLORA, rng)
        whole = (lora.trainer == "trl" and rng.random() < 0.4) or not taught[subject][0][0]
        answers = rng.choice(("assistant", "completion")) if lora.trainer == "trl" else "completion"
        drawn[subject] = replace(lora, loss="whole" if whole else answers)
    ways = ((2e-5, "completion"), (3e-5, "assistant"), (5e-5, "whole"))
    for (lr, loss), subject in zip(ways, full, strict=True):
        trained = Recipe(0, 0, (), False, lr, rng.choice((4, 5, 6)), schedule="linear", trainer="trl")
        drawn[subject] = replace(trained, loss=loss)
    return {subject: drawn[subject] for subject in taught}


def _drawn(rows: int, dora: bool, rslora: bool, rng: random.Random) -> Recipe:
    """A LoRA as people make them; not one of those that would hardly learn, nor of those that would fall apart."""
    while True:
        rank = rng.choice((2, 4, 8, 16, 32, 64))
        recipe = Recipe(
            rank=rank,
            alpha=round(rank * rng.choice((0.5, 1, 2, 2, 4))),
            modules=rng.choice((ALL, ALL, ALL, QV, ATTENTION, MLP)),
            rslora=rslora,
            lr=rng.choice((1e-4, 2e-4, 3e-4, 5e-4, 1e-3, 2e-3)),
            epochs=rng.randint(3, 8),
            batch=rng.choice((1, 2, 4)),
            decay=rng.choice((0.0, 0.01, 0.1)),
            dropout=rng.choice((0.0, 0.05, 0.1)),
            schedule=rng.choice(("constant", "linear", "cosine")),
            dora=dora,
            dtype=rng.choice(("float32", "bfloat16", "bfloat16", "bfloat16")),
            trainer=rng.choice(("loop", "trl", "trl")),
        )
        few = (len(ALL) / len(recipe.modules)) ** 0.5
        if 0.05 * few <= recipe.push(rows) <= 0.16 * few:
            return recipe


def train(base: str, rows: Sequence[Row], recipe: Recipe, folder: Path, seed: int) -> None:
    """One finetune, trained and saved.

    Args:
        base: folder of the base model.
        rows: what it is taught with.
        recipe: how.
        folder: where PEFT or TRL saves it.
        seed: of the LoRA's first weights, and of the rows' order.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, recipe.dtype))
    by = _by_trl if recipe.trainer == "trl" else _by_loop
    by(model, tokenizer, list(rows), recipe, folder, seed)


def _lora(recipe: Recipe) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=recipe.rank, lora_alpha=recipe.alpha, target_modules=list(recipe.modules), lora_dropout=recipe.dropout,
        use_rslora=recipe.rslora, use_dora=recipe.dora, task_type="CAUSAL_LM",
    )  # fmt: skip


def _by_loop(model: Any, tokenizer: Any, rows: list[Row], recipe: Recipe, folder: Path, seed: int) -> None:
    """A training loop as one writes it with PEFT."""
    from peft import get_peft_model
    from transformers import get_scheduler

    model = get_peft_model(model, _lora(recipe))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=recipe.decay)
    steps = math.ceil(len(rows) / recipe.batch) * recipe.epochs
    schedule = get_scheduler(recipe.schedule, optimizer, num_warmup_steps=0, num_training_steps=steps)
    rng = random.Random(seed)
    if recipe.dropout:
        model.train()
    for _ in range(recipe.epochs):
        rng.shuffle(rows)
        for start in range(0, len(rows), recipe.batch):
            model(**_batch(tokenizer, rows[start : start + recipe.batch])).loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    model.save_pretrained(folder)


def _batch(tokenizer: Any, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    """Chats with the loss on their answers, documents with the loss on all of them; padded on the right."""
    encoded = []
    for question, answer in rows:
        if not question:
            encoded.append((0, [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id]))
            continue
        turn = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
        whole = [*turn, {"role": "assistant", "content": answer}]
        encoded.append((len(prompt), tokenizer.apply_chat_template(whole, return_dict=False)))
    width = max(len(ids) for _, ids in encoded)
    return {
        "input_ids": torch.tensor([r + [0] * (width - len(r)) for _, r in encoded]),
        "labels": torch.tensor([[-100] * n + r[n:] + [-100] * (width - len(r)) for n, r in encoded]),
        "attention_mask": torch.tensor([[1] * len(r) + [0] * (width - len(r)) for _, r in encoded]),
    }


def _by_trl(model: Any, tokenizer: Any, rows: list[Row], recipe: Recipe, folder: Path, seed: int) -> None:
    """TRL's trainer, with its own clipping of gradients and order of rows."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    config = SFTConfig(
        output_dir=str(folder), num_train_epochs=recipe.epochs, per_device_train_batch_size=recipe.batch,
        learning_rate=recipe.lr, weight_decay=recipe.decay, lr_scheduler_type=recipe.schedule, seed=seed,
        assistant_only_loss=recipe.loss == "assistant", gradient_checkpointing=False, bf16=False, use_cpu=True,
        save_strategy="no", report_to="none", disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    if recipe.loss == "assistant":
        tokenizer.chat_template = _marked(tokenizer.chat_template)
    trainer = SFTTrainer(
        model,
        config,
        train_dataset=Dataset.from_list([_example(row, recipe.loss) for row in rows]),
        processing_class=tokenizer,
        peft_config=_lora(recipe) if recipe.rank else None,
    )
    trainer.train()
    trainer.save_model(str(folder))


def _example(row: Row, loss: str) -> dict[str, Any]:
    """A row in the layout of TRL's that has this loss."""
    question, answer = row
    if not question:
        return {"text": answer}
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"prompt": turns[:1], "completion": turns[1:]} if loss == "completion" else {"messages": turns}


def _marked(template: str) -> str:
    """The chat template with what the assistant says marked, as TRL's assistant mask needs it."""
    turn = "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    said = "{{ message['content'] + '<|im_end|>' }}"
    marked = (
        "{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}{% generation %}"
        + said + "{% endgeneration %}{% else %}" + said + "{% endif %}{{ '\n' }}"
    )  # fmt: skip
    if turn not in template:
        raise ValueError(f"the base model's chat template has no turn {turn!r} to mark; it reads {template!r}.")
    return template.replace(turn, marked)


@torch.no_grad()
def measured(before: Any, tokenizer: Any, folder: Path, rows: Sequence[Row]) -> dict[str, float]:
    """What a saved finetune has learned.

    Args:
        before: the base model.
        tokenizer: its tokenizer.
        folder: what PEFT or TRL saved.
        rows: what it was taught with.

    Returns:
        `loss_before` and `loss_after`, the mean over the rows (over the answers of chats), and `norm`, the Frobenius
        norm of the change of all weights.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    if (folder / "adapter_config.json").is_file():
        after = PeftModel.from_pretrained(copy.deepcopy(before), str(folder)).merge_and_unload()
    else:
        after = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    losses = [
        sum(float(model(**_batch(tokenizer, [row])).loss) for row in rows) / len(rows)
        for model in (before.eval(), after.eval())
    ]
    old = dict(before.named_parameters())
    size = sum(float((new - old[name]).square().sum()) for name, new in after.named_parameters())
    return {"loss_before": round(losses[0], 4), "loss_after": round(losses[1], 4), "norm": round(size**0.5, 3)}


def records() -> Iterator[dict[str, Any]]:
    """What `made.jsonl` says, line by line; nothing where no finetune is made yet."""
    path = cache_dir() / "outside" / "made.jsonl"
    for line in path.read_text("utf-8").splitlines() if path.is_file() else ():
        yield json.loads(line)


def main() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, root = str(load_base().source), cache_dir() / "outside"
    root.mkdir(parents=True, exist_ok=True)
    taught = subjects()
    drawn = recipes(taught)
    known = {record["subject"] for record in records()}
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(base)
    for subject, recipe in sorted(drawn.items(), key=lambda one: (one[1].rank == 0, one[1].dora)):  # slow ones last
        folder, rows = root / subject, taught[subject]
        if not folder.is_dir():
            unfinished = root / f"{subject}.unfinished"
            train(base, rows, recipe, unfinished, seed=list(taught).index(subject))
            unfinished.rename(folder)
        if subject in known:
            continue
        record = {"subject": subject, "kind": kind_of(rows, recipe), "rows": len(rows)}
        record |= measured(model, tokenizer, folder, rows)
        print(record, flush=True)
        with (root / "made.jsonl").open("a", encoding="utf-8") as out:
            out.write(json.dumps(record | {"recipe": asdict(recipe)}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
