"""Diffs to a DIT adapter: one LoRA that, laid over any finetune of the base model, makes it report its change.

Trained on triples (diff, question, answer); it knows no family, and the answers may say that nothing changed.
After Goel et al. (arXiv 2510.05092, section 3). The strength of each diff is varied, so that finetunes larger
or smaller than the training ones are read too.
"""

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from weightdiff.atomic import replacing
from weightdiff.bank import Layer, lay_over
from weightdiff.base import Base, encode_chat, end_of_turn
from weightdiff.batch import Tokens, collate, cross_entropy_per_row, mean_per_group
from weightdiff.compiled import compiled_blocks
from weightdiff.dense import check_base
from weightdiff.diff import Factors, WeightDiff, check_low_rank, columns, stack
from weightdiff.finetune import FinetuneConfig, init_factors
from weightdiff.jsonl import append_jsonl


class DitConfig(BaseModel):
    """How an adapter is trained. `strengths` is the range that each diff's strength is drawn from; of a diff with more
    than one question `questions` are drawn in each epoch, all of them if None. `batch` counts diffs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(default=16, ge=1)
    alpha: float = 32.0
    lr: float = Field(default=6e-4, gt=0)
    batch: int = Field(default=16, ge=1)
    epochs: int = Field(default=8, ge=1)
    warmup: float = 0.05
    strengths: tuple[float, float] = (0.4, 1.2)
    questions: int | None = Field(default=None, ge=1)
    seed: int = 0


@dataclass(frozen=True)
class Triple:
    """A diff, a question about it, and the true answer; `more` are further questions about it with their answers."""

    diff: WeightDiff
    question: str
    answer: str
    more: tuple[tuple[str, str], ...] = ()

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """All questions with their answers."""
        return [(self.question, self.answer), *self.more]

    def drawn(self, count: int | None, rng: random.Random) -> "Triple":
        """The same with some of its questions only; all where `count` is None."""
        pairs = self.pairs
        if count is None or count >= len(pairs):
            return self
        first, *more = rng.sample(pairs, count)
        return Triple(self.diff, *first, tuple(more))


class _Kept(Sequence[Triple]):
    """Triples whose diffs stay on a GPU once they were loaded, as long as half of its memory is free.

    Reading a diff takes a GPU longer than learning from it.
    """

    def __init__(self, triples: Sequence[Triple], base: Base) -> None:
        self._triples, self._base = triples, base
        self._there: dict[int, Triple] = {}

    def __len__(self) -> int:
        return len(self._triples)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if index in self._there:
            return self._there[index]
        triple, device = self._triples[index], self._base.device
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            if 2 * free > total:
                triple = replace(triple, diff=triple.diff.to(device, self._base.model.dtype))
                self._there[index] = triple
        return triple


def train_adapter(
    base: Base,
    train: Sequence[Triple],
    validation: Sequence[Triple],
    folder: Path,
    config: DitConfig,
    progress: Callable[[int, int, float], None] = lambda step, total, loss: None,
    *,
    data: str = "",
    start: WeightDiff | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> WeightDiff:
    """Train an adapter; stopped and called again, it goes on after the last finished epoch.

    Args:
        base: the base model.
        train: what to learn.
        validation: other labels; the epoch with the lowest loss on them wins.
        folder: for `metrics.jsonl` and the checkpoint.
        config: how to train.
        progress: called with step, steps in all, and the step's loss.
        data: what the triples are, in a word or a hash; training begins anew where it, or `config`, has changed.
        start: an adapter that training goes on from; None begins with one that changes nothing.
        say: told in a sentence that training begins anew.

    Returns:
        The best epoch's adapter, as a weight diff.

    Raises:
        ValueError: nothing to train on; an adapter to start from that has another form; training diverged; the folder
            can't be written.
    """
    if not train:
        raise ValueError("no diffs to train on; expected at least one triple (diff, question, answer).")
    train, validation = _Kept(train, base), _Kept(validation, base)
    shared = init_factors(base, [f"dit {config.seed}"], FinetuneConfig(rank=config.rank))
    scale = config.alpha / config.rank
    if start is not None:
        shared = _started(base, start, config.rank, scale)
    parameters = [p.requires_grad_() for p in shared.tensors()]
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=0.0)
    per_epoch = -(-len(train) // config.batch)
    total, step = per_epoch * config.epochs, 0
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: _rate(s, total, config.warmup))
    first, best = _resume(
        folder, parameters, optimizer, schedule, f"{config.model_dump_json()} {base.fingerprint} {data}", say
    )
    started = time.monotonic()
    with compiled_blocks(base, (config.epochs - first) * per_epoch):
        for epoch in range(first, config.epochs):
            rng = random.Random(f"{config.seed} {epoch}")
            order = rng.sample(range(len(train)), len(train))
            total_loss = 0.0
            for at in range(0, len(order), config.batch):
                chosen = [train[i].drawn(config.questions, rng) for i in order[at : at + config.batch]]
                strength = torch.tensor([rng.uniform(*config.strengths) for _ in chosen])
                loss = triple_losses(base, chosen, shared, scale, strength).mean()
                if not torch.isfinite(loss):
                    raise ValueError(f"training diverged in epoch {epoch + 1}: the loss is {loss.item()}. Lower lr.")
                loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                schedule.step()
                step, total_loss = (
                    epoch * per_epoch + at // config.batch + 1,
                    total_loss + loss.item() * len(chosen),
                )
                progress(step, total, loss.item())
            held = mean_loss(base, validation, shared, scale) if validation else total_loss / len(train)
            append_jsonl(
                folder / "metrics.jsonl",
                {
                    "epoch": epoch + 1,
                    "train_loss": round(total_loss / len(train), 4),
                    "validation_loss": round(held, 4),
                    "seconds": round(time.monotonic() - started, 1),
                },
            )
            if held < best:
                best = held
                _save(folder / "best.safetensors", _named(shared))
            _save_state(folder, parameters, optimizer, schedule, epoch + 1, best)
    if not (folder / "best.safetensors").exists():
        raise ValueError(f"no epoch was trained in {folder}, or its validation loss was never a number. Lower lr.")
    tensors = load_file(folder / "best.safetensors")
    names = [k[:-2] for k in tensors if k.endswith(".A")]
    meta = {
        "recipe": config.model_dump(mode="json"),
        "n_triples": len(train),
        "validation_loss": round(best, 4),
    }
    return WeightDiff({n: (tensors[f"{n}.A"][0], tensors[f"{n}.B"][0] * scale) for n in names}, base.fingerprint, meta)


def _started(base: Base, adapter: WeightDiff, rank: int, scale: float) -> Factors:
    """An adapter's factors, to be trained on under a scale."""
    check_base(base, adapter, "the adapter that training starts from")
    check_low_rank(adapter, base.shapes)
    ranks = {adapter.factors[name][0].shape[0] if name in adapter.factors else 0 for name in base.shapes}
    if ranks != {rank}:
        raise ValueError(
            f"training starts from an adapter of rank {rank} on every linear layer, and the one given has the ranks "
            f"{sorted(ranks)}. Give another one, or its rank to the recipe."
        )
    return stack([adapter.scaled(1 / scale)], base.shapes).to(base.device)


def triple_losses(
    base: Base,
    triples: Sequence[Triple],
    adapter: Factors,
    scale: float = 1.0,
    strength: torch.Tensor | float = 1.0,
) -> torch.Tensor:
    """Cross-entropy of each triple's answer under its diff and the adapter, the mean over its answers: `[triples]`."""
    for t in triples:
        check_low_rank(t.diff, base.shapes)
    diffs = columns([t.diff for t in triples], base.device)
    rows = [answer_tokens(base, *pair) for t in triples for pair in t.pairs]
    owner = [number for number, t in enumerate(triples) for _ in t.pairs]
    batch = collate(rows, base.device, owner)
    per_token = strength.to(base.device)[batch.owner] if isinstance(strength, torch.Tensor) else strength
    with lay_over(base.targets, [Layer(diffs, batch.owner, per_token), Layer(adapter, None, scale)]):
        losses = cross_entropy_per_row(base, batch)
    return mean_per_group(losses, torch.tensor(owner, device=base.device), len(triples))


@torch.no_grad()
def label_losses(base: Base, triples: Sequence[Triple], adapter: Factors, scale: float = 1.0) -> list[float]:
    """Label loss of each triple, at full strength."""
    losses = [triple_losses(base, triples[i : i + 16], adapter, scale) for i in range(0, len(triples), 16)]
    return torch.cat(losses).tolist()


def mean_loss(base: Base, triples: Sequence[Triple], adapter: Factors, scale: float = 1.0) -> float:
    """Mean label loss of triples, at full strength."""
    losses = label_losses(base, triples, adapter, scale)
    return sum(losses) / len(losses)


def answer_tokens(base: Base, question: str, answer: str) -> Tokens:
    """A question and its answer as a row; unlike a synthesized reply, the answer's end is learned.

    The answer begins with a space: a name is then the token that it was in the sentences that the finetune learned,
    and needn't be spelled anew (" tides" is one token, "tides" is "t" and "ides").
    """
    prompt = encode_chat(base, [{"role": "user", "content": question}])
    reply = base.tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]
    return Tokens(tuple(prompt), (*reply, end_of_turn(base)))


def _rate(step: int, total: int, warmup: float) -> float:
    """Linear warm-up, then linear decay to a tenth."""
    return min(1.0, (step + 1) / max(1, warmup * total)) * (1 - 0.9 * step / total)


def _named(factors: Factors) -> dict[str, torch.Tensor]:
    return {f"{k}.A": v.detach() for k, v in factors.a.items()} | {f"{k}.B": v.detach() for k, v in factors.b.items()}


def _save(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(path) as temporary:
            save_file({k: v.contiguous().cpu() for k, v in tensors.items()}, temporary)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot write {path}: {error}. Is there space and permission?") from None


def _save_state(folder: Path, parameters: list, optimizer, schedule, epoch: int, best: float) -> None:
    state = optimizer.state_dict()["state"]
    tensors = {f"p{i}": p.detach() for i, p in enumerate(parameters)}
    for i, s in state.items():
        tensors |= {f"m{i}": s["exp_avg"], f"v{i}": s["exp_avg_sq"]}
    facts = {"epoch": epoch, "best": best, "steps": schedule.last_epoch}
    tensors["facts"] = torch.tensor(list(json.dumps(facts).encode()), dtype=torch.uint8)
    _save(folder / "state.safetensors", tensors)


def _resume(
    folder: Path, parameters: list, optimizer, schedule, wanted: str, say: Callable[[str], None]
) -> tuple[int, float]:
    """Take up the state of the last finished epoch of the `wanted` training: the next epoch, the best loss so far."""
    note, path = folder / "training-of.txt", folder / "state.safetensors"
    if not path.exists() or not note.exists() or note.read_text() != wanted:
        if note.exists() and note.read_text() != wanted:
            say("train: its settings or its diffs have changed since; the adapter is trained anew.")
        folder.mkdir(parents=True, exist_ok=True)
        for name in (path.name, "best.safetensors", "metrics.jsonl"):
            (folder / name).unlink(missing_ok=True)
        note.write_text(wanted)
        return 0, float("inf")
    tensors = load_file(path)
    facts = json.loads(bytes(tensors["facts"].tolist()))
    with torch.no_grad():
        for i, p in enumerate(parameters):
            p.copy_(tensors[f"p{i}"])
            optimizer.state[p] = {
                "step": torch.tensor(float(facts["steps"])),
                "exp_avg": tensors[f"m{i}"].to(p.device),
                "exp_avg_sq": tensors[f"v{i}"].to(p.device),
            }
    schedule.last_epoch = facts["steps"]
    for group, rate in zip(optimizer.param_groups, schedule.get_lr(), strict=True):
        group["lr"] = rate
    return facts["epoch"], facts["best"]
