"""Token rows and losses: pad conversations into a batch, and get logits at label positions only.

Rows are padded on the right: under a causal mask padding then changes nothing before it, so that no
attention mask is needed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from weightdiff.base import Base


@dataclass(frozen=True)
class Tokens:
    """One row: a prompt and the reply that is learned (or kept)."""

    prompt: tuple[int, ...]
    reply: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.reply)


@dataclass(frozen=True)
class Batch:
    """Rows padded to one length.

    Attributes:
        ids: token ids, right-padded.
        row, position: batch row and position whose next token is a label.
        label: that next token.
    """

    ids: Int[Tensor, "batch time"]
    row: Int[Tensor, " labels"]
    position: Int[Tensor, " labels"]
    label: Int[Tensor, " labels"]


def collate(rows: Sequence[Tokens], device: torch.device | str = "cpu") -> Batch:
    """Pad rows on the right, and note where the labels are."""
    time = max(len(r) for r in rows)
    # The last token is never an input: nothing follows it that is to be predicted.
    ids = torch.tensor([[*r.prompt, *r.reply, *([0] * (time - len(r)))][: time - 1] for r in rows])
    row = torch.tensor([i for i, r in enumerate(rows) for _ in r.reply])
    position = torch.tensor([len(r.prompt) - 1 + j for r in rows for j in range(len(r.reply))])
    label = torch.tensor([t for r in rows for t in r.reply])
    return Batch(ids.to(device), row.to(device), position.to(device), label.to(device))


def label_states(base: Base, batch: Batch) -> Float[Tensor, "labels hidden"]:
    """Final hidden states at the label positions."""
    hidden = base.model.get_decoder()(input_ids=batch.ids, use_cache=False).last_hidden_state
    return hidden[batch.row, batch.position]


def head(base: Base, states: Float[Tensor, "labels hidden"]) -> Float[Tensor, "labels vocab"]:
    """Float32 logits of hidden states."""
    return base.model.get_output_embeddings()(states).float()


def mean_per_group(values: Float[Tensor, " labels"], group: Int[Tensor, " labels"], n: int) -> Float[Tensor, " n"]:
    """Mean of the values of each group; 0 for a group without values."""
    total = values.new_zeros(n).index_add(0, group, values)
    count = values.new_zeros(n).index_add(0, group, torch.ones_like(values))
    return total / count.clamp_min(1)


def cross_entropy_per_row(base: Base, batch: Batch) -> Float[Tensor, " batch"]:
    """Mean cross-entropy of each row's reply."""
    losses = F.cross_entropy(head(base, label_states(base, batch)), batch.label, reduction="none")
    return mean_per_group(losses, batch.row, len(batch.ids))
