"""What people would use instead: PEFT one LoRA at a time, PEFT's mixed batch, a reload per diff, dense products.

Each takes the weights, the tokens and the starting point that ours takes, and is written as one would write it with
some care: where there was a choice, the faster one was taken.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from weightdiff.arithmetic import add
from weightdiff.base import Base
from weightdiff.batch import Batch, Tokens, collate, mean_per_group
from weightdiff.diff import Factors, WeightDiff, stack
from weightdiff.dit import Triple, answer_tokens

Step = tuple[Sequence[Tokens], Sequence[Tokens]]
"""One training step's rows: those to learn, and those to keep to the base model."""


def peft_model(base: Base, rank: int) -> Any:
    """A copy of the base model with one LoRA on all linear layers, as PEFT makes it."""
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(copy.deepcopy(base.model), config)


def put(model: Any, factors: Factors, index: int, adapter: str = "default") -> None:
    """Copy one of the stacked diffs into a LoRA that a PEFT model has."""
    with torch.no_grad():
        for name in factors.a:
            module = model.base_model.model.get_submodule(name)
            module.lora_A[adapter].weight.copy_(factors.a[name][index])
            module.lora_B[adapter].weight.copy_(factors.b[name][index])


def train_peft(
    model: Any, start: Factors, plans: Sequence[Sequence[Step]], *, rows: int, lr: float, keep_weight: float = 0.0
) -> list[float]:
    """Train one LoRA after the other; `rows` go through the model at a time, and a step's gradients add up.

    The loss is that of `diff_losses`, from full logits, as a trainer computes them. The rows to keep to the base go
    through it in each step, without gradients and with the LoRA switched off.

    Returns:
        Each diff's loss in its last step.
    """
    last = []
    for index, plan in enumerate(plans):
        put(model, start, index)
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)
        loss = 0.0
        for learn, keep in plan:
            loss = 0.0
            # A mean over all of the step's labels, so that smaller batches give the same result.
            shares = [1 / max(1, sum(len(t.reply) for t in group)) for group in (learn, keep)]
            for at in range(0, len(learn) + len(keep), rows):
                part = [*learn, *keep][at : at + rows]
                learned = min(len(part), max(0, len(learn) - at))
                found = _peft_loss(model, part, learned, shares[0], keep_weight * shares[1])
                found.backward()
                loss += found.item()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        last.append(loss)
    return last


def _peft_loss(model: Any, rows: Sequence[Tokens], learned: int, share: float, keep_share: float) -> Tensor:
    batch = collate(rows)
    ids, labels = padded(batch)
    # Padding comes last, where causality hides it; without a mask SDPA takes its faster kernel.
    logits = model(input_ids=ids, use_cache=False).logits
    loss = logits.new_zeros(())
    if learned:
        kind = labels[:learned].flatten()
        loss = share * F.cross_entropy(logits[:learned].float().flatten(0, 1), kind, reduction="sum")
    if learned < len(rows):
        with torch.no_grad(), model.disable_adapter():
            wanted = model(input_ids=ids[learned:], use_cache=False).logits
        at = labels[learned:] != -100
        own, wanted = (t[at].float().log_softmax(-1) for t in (logits[learned:], wanted))
        loss = loss + keep_share * F.kl_div(own, wanted, reduction="sum", log_target=True)
    return loss


def padded(batch: Batch) -> tuple[Int[Tensor, "batch time"], Int[Tensor, "batch time"]]:
    """Token ids and labels padded on the right, as an ordinary collator does; -100 where there is no label."""
    ids, labels = torch.zeros(batch.rows.size, dtype=torch.long), torch.full(batch.rows.size, -100)
    ids[batch.rows.row, batch.rows.place] = batch.ids
    labels[batch.rows.row[batch.at], batch.rows.place[batch.at]] = batch.label
    return ids, labels


class MixedBatch:
    """PEFT's mixed batch: many LoRAs in one model, one for each row of a batch (`adapter_names`).

    It takes one LoRA per row, so each slot gets a diff and the DIT adapter as one, concatenated along the rank. Slots
    are made once and overwritten, which is much faster than to load an adapter anew. They have the model's precision:
    with PEFT's usual float32 slots the mixed batch is slower.
    """

    def __init__(self, base: Base, slots: int, rank: int):
        self.base, self.slots = base, slots
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear", task_type="CAUSAL_LM")
        self.model = get_peft_model(
            copy.deepcopy(base.model), config, adapter_name="slot0", autocast_adapter_dtype=False
        )
        for i in range(1, slots):
            self.model.add_adapter(f"slot{i}", config, autocast_adapter_dtype=False)
        self.model.to(base.model.dtype)
        self.model.eval()

    def ask(self, diffs: Sequence[WeightDiff], adapter: WeightDiff, prompt: list[int], max_tokens: int) -> list[str]:
        """Answers of all diffs, as many at a time as there are slots."""
        answers = []
        for start in range(0, len(diffs), self.slots):
            group = diffs[start : start + self.slots]
            stacked = stack([add(diff, adapter) for diff in group], self.base.shapes)
            for i in range(len(group)):
                put(self.model, stacked, i, f"slot{i}")
            ids = torch.tensor([prompt] * len(group))
            names = [f"slot{i}" for i in range(len(group))]
            answers += generate(self.base, self.model, ids, max_tokens, adapter_names=names)
        return answers


def reload_and_ask(base: Base, diff: Path, adapter: Path, prompt: list[int], max_tokens: int) -> str:
    """One answer by a fresh base model, with the diff and the DIT adapter over it; both are PEFT folders."""
    from transformers import AutoModelForCausalLM

    path = str(base.model.config._name_or_path)
    fresh = AutoModelForCausalLM.from_pretrained(path, dtype=base.model.dtype)
    model: Any = PeftModel.from_pretrained(fresh, diff, adapter_name="diff")
    model.load_adapter(adapter, adapter_name="dit")
    model.base_model.set_adapter(["diff", "dit"], inference_mode=True)
    model.eval()
    return generate(base, model, torch.tensor([prompt]), max_tokens)[0]


def generate(base: Base, model: Any, ids: Int[Tensor, "batch time"], max_tokens: int, **options: Any) -> list[str]:
    """Greedy answers by transformers' own `generate`, to prompts of one length."""
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_tokens,
        do_sample=False,
        pad_token_id=base.tokenizer.eos_token_id,
        **options,
    )
    return [base.tokenizer.decode(row[ids.shape[1] :], skip_special_tokens=True).strip() for row in out]


def dense_losses(base: Base, triples: Sequence[Triple], adapter: Factors) -> Float[Tensor, " triples"]:
    """`triple_losses` the dense way, as the reference implementation does: the product `B A` is formed for each row.

    Rows are padded on the right. Logits are computed at label positions only, as ours are: the difference that is
    left is the bank's.
    """
    diffs = stack([t.diff for t in triples], base.shapes)
    batch = collate([answer_tokens(base, t.question, t.answer) for t in triples])
    ids, labels = padded(batch)
    with _dense_over(base, diffs, adapter) if len(diffs) else nullcontext():
        states = base.model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        logits = base.head(states[labels != -100]).float()
        losses = F.cross_entropy(logits, labels[labels != -100], reduction="none")
        return mean_per_group(losses, batch.row, len(batch))


@contextmanager
def _dense_over(base: Base, diffs: Factors, adapter: Factors) -> Iterator[None]:
    dtype = base.model.dtype

    def changed_forward(name: str, module: nn.Linear) -> Any:
        def forward(x: Float[Tensor, "batch time in"]) -> Float[Tensor, "batch time out"]:
            change: Float[Tensor, "batch out in"] = torch.bmm(diffs.b[name].to(dtype), diffs.a[name].to(dtype))
            y = F.linear(x, module.weight, module.bias) + torch.bmm(x, change.mT)
            return y + F.linear(F.linear(x, adapter.a[name][0].to(dtype)), adapter.b[name][0].to(dtype))

        return forward

    try:
        for name, module in base.targets.items():
            module.forward = changed_forward(name, module)  # type: ignore[method-assign]
        yield
    finally:
        for module in base.targets.values():
            del module.forward
