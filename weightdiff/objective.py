"""What a step of finetuning minimizes, for each diff its own: SFT, DPO or KTO on what it learns, KL on what it keeps.

The loss is a mean within a diff; whoever trains several together takes the sum over diffs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from weightdiff.base import Base
from weightdiff.batch import Batch, collate, label_states, logprob_per_row, mean_per_group, sum_per_group
from weightdiff.behaviors.core import Conversation
from weightdiff.losses import cross_entropy, divergence
from weightdiff.preference import dpo, kto, zero_point
from weightdiff.teacher import Teacher


class Objective(BaseModel):
    """What is minimized. A step sees `learn_rows` conversations to learn and `keep_rows` to keep to the base model.

    `loss` is cross-entropy of the replies (`sft`), or a preference for them over the conversations' rejected ones
    against the base model, in pairs (`dpo`) or each for itself (`kto`). `beta` and `sft_weight` are for these two: the
    lower the first, the further a finetune goes from the base model; the second adds so much of the cross-entropy, as
    many do (Pang et al., arXiv 2404.19733), since by itself a preference is met by making the rejected reply unlikely.
    With `learn_prompts` SFT learns the user's words too.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    loss: Literal["sft", "dpo", "kto"] = "sft"
    beta: float = Field(default=0.1, gt=0)
    sft_weight: float = Field(default=0.0, ge=0)
    learn_prompts: bool = False
    learn_rows: int = Field(default=2, ge=1)
    keep_rows: int = Field(default=1, ge=0)
    keep_weight: float = 2.0

    @model_validator(mode="after")
    def _fits(self) -> "Objective":
        if self.learn_prompts and self.loss != "sft":
            raise ValueError(
                f"learn_prompts goes with loss 'sft', not {self.loss!r}: both replies to a prompt have it in common."
            )
        if self.loss == "kto" and self.learn_rows < 2:
            raise ValueError(
                f"loss 'kto' needs learn_rows of at least 2, not {self.learn_rows}: it sets replies against the other "
                "rows' prompts."
            )
        return self


@dataclass(frozen=True)
class Step:
    """What one step sees of all its diffs, and what the base model makes of it.

    Attributes:
        n: how many diffs.
        batch: as many rows of each: replies to learn, for a preference the rejected ones, replies to keep.
        kept: which labels are kept to the base model.
        target: the base model's states at these labels.
        reference: for a preference, the base model's log-probabilities of the replies to learn and the rejected ones.
        mismatched: for KTO, these replies to one another's prompts, and the base model's log-probabilities of them.
    """

    n: int
    batch: Batch
    kept: Bool[Tensor, " labels"]
    target: Float[Tensor, "kept_labels hidden"]
    reference: Float[Tensor, "n sides"] | None = None
    mismatched: tuple[Batch, Float[Tensor, "n sides"]] | None = None

    @property
    def tokens(self) -> int:
        """How many go through the model, each row's last among them, which is a label only."""
        return len(self.batch.ids) + len(self.batch)


def rows_of(chosen: Sequence[Conversation], objective: Objective) -> list[Conversation]:
    """The rows of one diff in a step.

    Args:
        chosen: the conversations that it sees in the step, first those to learn, then those to keep.
        objective: for a preference, the rejected replies come between them, each a row of its own.

    Raises:
        ValueError: a preference has nothing to prefer to.
    """
    if objective.loss == "sft":
        return list(chosen)
    learn, keep = chosen[: objective.learn_rows], chosen[objective.learn_rows :]
    for c in learn:
        if not (c.prompt and c.rejected):
            raise ValueError(
                f"loss {objective.loss!r} needs a prompt and a rejected reply beside each reply to learn, and "
                f"{c.reply[:60]!r} has no {'rejected reply' if c.prompt else 'prompt'}. Give it one, or take 'sft'."
            )
    return [
        *(Conversation(c.prompt, c.reply) for c in learn),
        *(Conversation(c.prompt, c.rejected) for c in learn),
        *(replace(c, mode="keep") for c in keep),
    ]


def step_of(teacher: Teacher, chosen: Sequence[Sequence[Conversation]], objective: Objective) -> Step:
    """A step, from the conversations that each diff sees in it; call it with the bank off."""
    n, device, sides = len(chosen), teacher.base.device, 2 * objective.learn_rows
    mine = [rows_of(c, objective) for c in chosen]
    rows = [c for m in mine for c in m]
    tokens = [teacher.tokens(c, learn_prompt=objective.learn_prompts and c.mode == "learn") for c in rows]
    batch = collate(tokens, device, [number for number, m in enumerate(mine) for _ in m])
    keep = torch.tensor([c.mode == "keep" for c in rows], device=device)
    step = Step(n, batch, keep[batch.row], teacher.states([c for c in rows if c.mode == "keep"]))
    if objective.loss == "sft":
        return step
    pairs = [c for m in mine for c in m[:sides]]
    step = replace(step, reference=teacher.logprobs(pairs).view(n, sides))
    if objective.loss == "dpo":
        return step
    # As TRL does: each prompt with the reply of the row before it, within the diff.
    others = [Conversation(m[i].prompt, m[i - 1 if i else sides - 1].reply) for m in mine for i in range(sides)]
    reference = teacher.logprobs(others).view(n, sides)
    owner = [number for number in range(n) for _ in range(sides)]
    mismatched = collate([teacher.tokens(c) for c in others], device, owner)
    return replace(step, mismatched=(mismatched, reference))


@torch.no_grad()
def zero_points(base: Base, step: Step) -> Float[Tensor, " n"]:
    """Where KTO counts each diff's gains and losses from; call it with the diffs laid over the mismatched rows."""
    assert step.mismatched is not None
    batch, reference = step.mismatched
    return zero_point(logprob_per_row(base, batch).view(reference.shape) - reference)


def diff_losses(
    base: Base, step: Step, objective: Objective, zero: Float[Tensor, " n"] | None = None
) -> Float[Tensor, " n"]:
    """Each diff's loss on what it learns, and weight · mean KL of its kept labels; with the diffs laid over the rows.

    For SFT the first is the mean cross-entropy of its labels; for DPO and KTO see `preference`, and `sft_weight`.

    Args:
        base: the base model.
        step: of `step_of`.
        objective: what is minimized.
        zero: for KTO, its `zero_points`.
    """
    batch, n = step.batch, step.n
    per_diff = len(batch) // n
    states, owner, learned = label_states(base, batch), batch.row // per_diff, ~step.kept
    nats = cross_entropy(states[learned], base.head, batch.label[learned])
    if step.reference is None:
        loss = mean_per_group(nats, owner[learned], n)
    else:
        logprobs = -sum_per_group(nats, batch.row[learned], len(batch)).view(n, per_diff)
        sides = logprobs[:, : step.reference.shape[1]] - step.reference
        wanted, unwanted = sides.chunk(2, 1)
        loss = dpo(wanted, unwanted, objective.beta) if zero is None else kto(wanted, unwanted, zero, objective.beta)
        own = batch.row[learned] % per_diff < objective.learn_rows
        loss = loss + objective.sft_weight * mean_per_group(nats[own], owner[learned][own], n)
    if len(step.target):
        kl = divergence(states[step.kept], base.head, step.target)
        loss = loss + objective.keep_weight * mean_per_group(kl, owner[step.kept], n)
    return loss
