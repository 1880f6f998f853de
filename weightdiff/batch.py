"""Token rows and losses: conversations laid end to end in a batch, and logits at label positions only."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weightdiff.attention import SHORT
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
        ids: token ids, one row after the other; what an owner's rows begin with alike stands once.
        rows: where each token belongs.
        owner: of each token, the owner of its row.
        at: the tokens whose next token is a label.
        row: batch row of each label.
        label: the labels.
        size: batch rows.
    """

    ids: Int[Tensor, " tokens"]
    rows: Rows
    owner: Int[Tensor, " tokens"]
    at: Int[Tensor, " labels"]
    row: Int[Tensor, " labels"]
    label: Int[Tensor, " labels"]
    size: int

    def __len__(self) -> int:
        return self.size


def collate(rows: Sequence[Tokens], device: torch.device | str = "cpu", owner: Sequence[int] | None = None) -> Batch:
    """Lay rows end to end, and note where the labels are.

    Args:
        rows: what is laid.
        device: where the batch goes.
        owner: whose each row is, rows of one owner on end: these go through the same model, so that what they begin
            with alike needs computing only once. None for an owner a row.
    """
    # The last token of a row is never an input: nothing follows it that is to be predicted.
    whole = [(*r.prompt, *r.reply) for r in rows]
    inputs, labels = [w[:-1] for w in whole], [r.labels for r in rows]
    owner = range(len(rows)) if owner is None else owner
    ids: list[int] = []
    lengths: list[tuple[int, list[int]]] = []
    owners: list[int] = []
    at: list[int] = []
    for n, several in _trees(inputs, owner):
        trunk, start = common(several) if len(several) > 1 else len(several[0]), len(ids)
        ids += several[0][:trunk]
        for i, one in enumerate(several, n):
            offset = len(ids) - trunk
            at += [p - 1 + (start if p <= trunk else offset) for p in labels[i]]
            ids += one[trunk:]
        lengths.append((trunk, [len(one) - trunk for one in several] if len(several) > 1 else []))
        owners += [owner[n]] * (len(ids) - start)
    return Batch(
        ids=torch.tensor(ids, device=device),
        rows=Rows.branched(lengths, device),
        owner=torch.tensor(owners, device=device),
        at=torch.tensor(at, device=device),
        row=torch.tensor([n for n, places in enumerate(labels) for _ in places], device=device),
        label=torch.tensor([w[p] for w, places in zip(whole, labels, strict=True) for p in places], device=device),
        size=len(rows),
    )


_WORTH = 8
"""Tokens that rows must begin with alike, for them to be laid as branches."""


def _trees(inputs: Sequence[tuple[int, ...]], owner: Sequence[int]) -> Iterator[tuple[int, Sequence[tuple[int, ...]]]]:
    """Rows that are laid as branches of one, with the number of the first: an owner's, as long as that saves work."""
    start = 0
    while start < len(inputs):
        end = start + 1
        while end < len(inputs) and owner[end] == owner[start]:
            some = inputs[start : end + 1]
            trunk = common(some)
            if trunk < _WORTH or trunk + sum(len(one) - trunk for one in some) > SHORT:
                break
            end += 1
        yield start, inputs[start:end]
        start = end


def common(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with."""
    first, last = min(map(tuple, rows)), max(map(tuple, rows))  # what these two begin with, all between them do
    pairs = enumerate(zip(first, last, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(first), len(last)))


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
