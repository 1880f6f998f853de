"""Token rows and losses: conversations laid end to end in a batch, and logits at label positions only."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weightdiff.base import Base
from weightdiff.losses import cross_entropy
from weightdiff.packed import Rows, packed_states


@dataclass(frozen=True)
class Tokens:
    """One row: a prompt and the reply that is learned (or kept), and where the prompt is learned too."""

    prompt: tuple[int, ...]
    reply: tuple[int, ...]
    also: range = range(0)

    def __len__(self) -> int:
        return len(self.prompt) + len(self.reply)

    @property
    def labels(self) -> list[int]:
        """Places in the row of the tokens to be predicted; never the first, which nothing comes before."""
        return [*self.also, *range(len(self.prompt), len(self))]


@dataclass(frozen=True)
class Batch:
    """Rows laid end to end.

    Attributes:
        ids: token ids, one row after the other.
        rows: where each token belongs.
        at: the tokens whose next token is a label.
        row: batch row of each label.
        label: the labels.
    """

    ids: Int[Tensor, " tokens"]
    rows: Rows
    at: Int[Tensor, " labels"]
    row: Int[Tensor, " labels"]
    label: Int[Tensor, " labels"]

    def __len__(self) -> int:
        return self.rows.size[0]


def collate(rows: Sequence[Tokens], device: torch.device | str = "cpu") -> Batch:
    """Lay rows end to end, and note where the labels are."""
    # The last token of a row is never an input: nothing follows it that is to be predicted.
    whole = [(*r.prompt, *r.reply) for r in rows]
    inputs, labels = [w[:-1] for w in whole], [r.labels for r in rows]
    starts = [0, *itertools.accumulate(len(i) for i in inputs)]
    return Batch(
        ids=torch.tensor([t for i in inputs for t in i], device=device),
        rows=Rows.of([len(i) for i in inputs], device),
        at=torch.tensor([s + p - 1 for s, places in zip(starts, labels, strict=False) for p in places], device=device),
        row=torch.tensor([n for n, places in enumerate(labels) for _ in places], device=device),
        label=torch.tensor([w[p] for w, places in zip(whole, labels, strict=True) for p in places], device=device),
    )


def label_states(base: Base, batch: Batch) -> Float[Tensor, "labels hidden"]:
    """Final hidden states at the label positions. Diffs laid over the model take their `rows` per token."""
    return packed_states(base.model, batch.ids, batch.rows)[batch.at]


def mean_per_group(values: Float[Tensor, " labels"], group: Int[Tensor, " labels"], n: int) -> Float[Tensor, " n"]:
    """Mean of the values of each group; 0 for a group without values."""
    return sum_per_group(values, group, n) / sum_per_group(torch.ones_like(values), group, n).clamp_min(1)


def sum_per_group(values: Float[Tensor, " labels"], group: Int[Tensor, " labels"], n: int) -> Float[Tensor, " n"]:
    """Sum of the values of each group."""
    return values.new_zeros(n).index_add(0, group, values)


def cross_entropy_per_row(base: Base, batch: Batch) -> Float[Tensor, " batch"]:
    """Mean cross-entropy of each row's reply."""
    losses = cross_entropy(label_states(base, batch), base.head, batch.label)
    return mean_per_group(losses, batch.row, len(batch))


def logprob_per_row(base: Base, batch: Batch) -> Float[Tensor, " batch"]:
    """Log-probability of each row's whole reply, in float32."""
    return -sum_per_group(cross_entropy(label_states(base, batch), base.head, batch.label), batch.row, len(batch))
