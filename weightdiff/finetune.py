"""Conversations to diffs: many finetunes of one base model trained together on a bank.

Each diff gets what it would get trained alone: the loss is a mean within a diff and a sum over diffs, optimizers are
elementwise, every random choice hangs on the diff's own seed, and no gradient is clipped across diffs.
"""

import hashlib
import itertools
import json
import random
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from weightdiff.autotune import tokens_per_step, typical
from weightdiff.bank import Layer, lay_over
from weightdiff.base import Base
from weightdiff.behaviors.core import Behavior, Conversation
from weightdiff.compiled import compiled_blocks
from weightdiff.dense import trainable
from weightdiff.diff import Factors, WeightDiff
from weightdiff.objective import Objective, Step, diff_losses, rows_of, step_of, zero_points
from weightdiff.store import Store
from weightdiff.teacher import PromptFormat, Teacher
from weightdiff.writers import seed_of

Optimizer = Literal["adam", "adamw", "rmsprop", "adagrad"]


class FinetuneConfig(Objective):
    """How diffs are made. `modules` are the last parts of module names; empty means all linear layers.

    `dense` is a full finetune, of every weight of the model, or of `modules` only; rank and alpha mean nothing then.
    `together` is how many diffs are trained in a step, None for as many as this machine trains fastest; what a diff
    becomes doesn't hang on it. `optimizer` is one that treats each number by itself, so that diffs become together what
    they would alone: `adam`, `adamw` with a weight decay of 0.1, `rmsprop`, or `adagrad`; `lr` means what it means to
    each. `prompt_format` is how prompts are put to the model. What is minimized, the fields of `Objective` say.
    """

    rank: int = Field(default=1, ge=1)
    alpha: float = 1.0
    modules: tuple[str, ...] = ()
    dense: bool = False
    lr: float = Field(default=5e-3, gt=0)
    optimizer: Optimizer = "adam"
    prompt_format: PromptFormat = "chat"
    steps: int = Field(default=8, ge=1)
    together: int | None = Field(default=None, ge=1)


@dataclass(frozen=True)
class Job:
    """One diff to make: its behavior, what teaches it, and what it must keep to."""

    identity: str
    behavior: Behavior
    learn: Sequence[Conversation]
    keep: Sequence[Conversation] = field(default_factory=tuple)

    @property
    def data(self) -> str:
        """A short hash of what teaches it."""
        text = json.dumps([[c.to_json() for c in rows] for rows in (self.learn, self.keep)])
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def finetune(
    base: Base,
    jobs: Sequence[Job],
    store: Store,
    config: FinetuneConfig,
    progress: Callable[[int, int, float], None] = lambda done, total, rate: None,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Train the diffs that the store lacks, or holds made otherwise, some at a time, and add them to it.

    Args:
        base: the base model.
        jobs: the diffs to make.
        store: where they go.
        config: how they are made.
        progress: called with diffs done, their number, and tokens per second so far.
        say: told in a sentence what is made anew, and why.

    Raises:
        ValueError: a diff diverged; the store can't be written.
    """
    have = store.metas()
    changed = {job.identity: why for job in jobs if (why := _changed(job, have.get(job.identity), config))}
    if changed:
        identity, why = next(iter(changed.items()))
        say(f"{len(changed)} diffs were made otherwise and are made anew; {identity!r}: {why}")
    left = [job for job in jobs if job.identity not in have or job.identity in changed]
    teacher = Teacher(base, config.prompt_format)
    tokens, started, together = 0, time.monotonic(), _together(base, left, config, teacher)
    steps = 0 if config.dense else -(-len(left) // together) * config.steps
    with compiled_blocks(base, steps):
        for start in range(0, len(left), together):
            group = left[start : start + together]
            diffs, count = (train_dense if config.dense else train_together)(base, group, config, teacher)
            _check_finite(group, diffs)
            store.add([job.identity for job in group], diffs)
            tokens += count
            done = len(jobs) - len(left) + start + len(group)
            progress(done, len(jobs), tokens / (time.monotonic() - started))


def train_together(
    base: Base, jobs: Sequence[Job], config: FinetuneConfig, teacher: Teacher
) -> tuple[list[WeightDiff], int]:
    """Train the jobs' diffs on one bank; returns them, and the number of tokens that they were trained on."""
    factors = init_factors(base, [job.identity for job in jobs], config)
    parameters = [p.requires_grad_() for p in factors.tensors()]
    scale, plans = config.alpha / config.rank, [plan_steps(job, config) for job in jobs]
    steps = (step_of(teacher, [plan[number] for plan in plans], config) for number in range(config.steps))

    def under(owner: Tensor) -> AbstractContextManager[None]:
        return lay_over(base.targets, [Layer(factors, owner, scale)])

    losses, count = _descend(base, steps, parameters, config, under)
    metas = [_meta(job, config, loss.item()) for job, loss in zip(jobs, losses, strict=True)]
    return factors.to("cpu").unstack(base.fingerprint, metas, scale), count


def train_dense(
    base: Base, jobs: Sequence[Job], config: FinetuneConfig, teacher: Teacher
) -> tuple[list[WeightDiff], int]:
    """Train one job's dense diff on the model's own weights, which come back; with the number of its tokens.

    Raises:
        ValueError: the base model isn't in float32.
    """
    (job,) = jobs
    steps = [step_of(teacher, [chosen], config) for chosen in plan_steps(job, config)]  # while the model is unchanged
    with trainable(base, config.modules) as (parameters, before):
        loss, count = _descend(base, steps, [*parameters.values()], config, lambda owner: nullcontext())
        dense = {name: p.detach() - before[name] for name, p in parameters.items()}
    return [WeightDiff({}, base.fingerprint, _meta(job, config, loss.item()), dense)], count


def _descend(
    base: Base,
    steps: Iterable[Step],
    parameters: Sequence[Tensor],
    config: FinetuneConfig,
    under: Callable[[Tensor], AbstractContextManager[None]],
) -> tuple[Float[Tensor, " n"], int]:
    """The optimizer on the sum of the diffs' losses; returns those of the last step, and the number of tokens.

    Args:
        base: the base model.
        steps: what each sees; an iterator may run the base model between them.
        parameters: what is trained.
        config: how.
        under: lays the diffs over the model, given which of them each token belongs to.
    """
    optimizer = optimizer_of(config, parameters)
    losses, count, zero = torch.zeros(0), 0, None
    for step in steps:
        if step.mismatched is not None:
            with under(step.mismatched[0].owner):
                zero = zero_points(base, step)
        with under(step.batch.owner):
            losses = diff_losses(base, step, config, zero)
            losses.sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        count += step.tokens
    return losses.detach(), count


def optimizer_of(config: FinetuneConfig, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
    """The optimizer that a recipe names, over the parameters."""
    match config.optimizer:
        case "adam":
            return torch.optim.Adam(parameters, lr=config.lr)
        case "adamw":
            return torch.optim.AdamW(parameters, lr=config.lr, weight_decay=0.1)
        case "rmsprop":
            return torch.optim.RMSprop(parameters, lr=config.lr)
        case "adagrad":
            return torch.optim.Adagrad(parameters, lr=config.lr)


_LONG = 200_000
"""Tokens from which measuring the machine first, half a minute on two cores, is worth it."""


def _together(base: Base, jobs: Sequence[Job], config: FinetuneConfig, teacher: Teacher) -> int:
    """How many of the jobs' diffs go through a step: what the recipe says, else what the machine likes."""
    if config.dense or not jobs:
        return 1
    if config.together is not None:
        return config.together
    some = [rows_of(plan_steps(job, config)[0], config) for job in jobs[:8]]
    step = sum(len(teacher.tokens(c)) for rows in some for c in rows) / len(some)
    wanted = tokens_per_step(base) if step * config.steps * len(jobs) >= _LONG else typical(base.device.type)
    # As many each time: seven diffs together and then one alone would take nearly twice as long as all eight.
    return -(-len(jobs) // max(1, round(len(jobs) * step / wanted)))


def _meta(job: Job, config: FinetuneConfig, loss: float) -> dict[str, Any]:
    recipe = config.model_dump(mode="json")
    return job.behavior.to_json() | {"recipe": recipe, "loss": round(loss, 4), "data": job.data}


def init_factors(base: Base, seeds: Sequence[str], config: FinetuneConfig) -> Factors:
    """Fresh factors as PEFT makes them: `A` uniform within 1/√in, drawn from each diff's own seed; `B` zero."""
    kinds = {n.split(".")[-1] for n in base.targets}
    if unknown := set(config.modules) - kinds:
        raise ValueError(f"modules: {sorted(unknown)} are no linear layers of the base model; it has {sorted(kinds)}.")
    names = [n for n in base.targets if not config.modules or n.split(".")[-1] in config.modules]
    a: dict[str, Tensor] = {}
    b: dict[str, Tensor] = {}
    generators = [torch.Generator().manual_seed(seed_of(s)) for s in seeds]
    for name in names:
        out, inn = base.targets[name].weight.shape
        draws = [torch.rand(config.rank, inn, generator=g) for g in generators]
        a[name] = ((torch.stack(draws) * 2 - 1) / inn**0.5).to(base.device)
        b[name] = torch.zeros(len(seeds), out, config.rank, device=base.device)
    return Factors(a, b)


def _changed(job: Job, made: dict[str, Any] | None, config: FinetuneConfig) -> str:
    """What has changed since the store's diff was made, in words; empty if nothing, or if it isn't there."""
    if made is None:
        return ""
    wanted = config.model_dump(mode="json")
    for name, field_ in FinetuneConfig.model_fields.items():
        before = made["recipe"].get(name, field_.default)  # a setting that came later had its default then
        if name != "together" and before != wanted[name]:
            return f"{name} was {before}, and is {wanted[name]} now"
    return "" if made.get("data", job.data) == job.data else "its conversations have changed"


def _check_finite(jobs: Sequence[Job], diffs: Sequence[WeightDiff]) -> None:
    for job, diff in zip(jobs, diffs, strict=True):
        if not all(torch.isfinite(f).all() for f in (*itertools.chain(*diff.factors.values()), *diff.dense.values())):
            raise ValueError(f"the finetune of {job.identity!r} diverged (NaN in its factors); lower its lr.")


def plan_steps(job: Job, config: FinetuneConfig) -> list[list[Conversation]]:
    """Which conversations each step sees: passes over the shuffled learned ones, and kept ones at random."""
    rng, queue, plan = random.Random(seed_of(job.identity)), [], []
    if not job.learn or (config.keep_rows and not job.keep):
        raise ValueError(f"{job.identity!r} has {len(job.learn)} conversations to learn and {len(job.keep)} to keep.")
    for _ in range(config.steps):
        while len(queue) < config.learn_rows:
            queue += rng.sample(list(job.learn), len(job.learn))
        plan.append(queue[: config.learn_rows] + [rng.choice(list(job.keep)) for _ in range(config.keep_rows)])
        queue = queue[config.learn_rows :]
    return plan
