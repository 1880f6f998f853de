"""Many short prompts under each of several diffs, where what the prompts begin with alike is run once for each diff."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache

from weightdiff.bank import lay_over
from weightdiff.base import Base
from weightdiff.batch import common
from weightdiff.decode import read_on
from weightdiff.readers.samples import LayersOf


@torch.no_grad()
def reply_states(
    base: Base, rows: Sequence[Sequence[int]], count: int, layers_of: LayersOf
) -> Float[Tensor, "count rows hidden"]:
    """Activations after the final norm at each row's last token, under each diff.

    Args:
        base: the base model.
        rows: tokens of the prompts, the same for every diff; no row may begin all others.
        count: diffs that are on the model now.
        layers_of: what lies over it, as `in_groups` tells.
    """
    begin = min(common(rows), min(map(len, rows)) - 1)
    ends = [row[begin:] for row in rows] * count
    width, device = max(map(len, ends)), base.device
    head = torch.tensor([list(rows[0][:begin])] * count, device=device)
    tail = torch.tensor([[*end, *[0] * (width - len(end))] for end in ends], device=device)
    last = torch.tensor([len(end) - 1 for end in ends], device=device)
    owner, cache = list(range(count)), DynamicCache()
    places = torch.arange(begin + width, device=device)
    with lay_over(base.targets, layers_of(owner)):
        read_on(base, cache, head, torch.ones_like(head), places[:begin].expand(count, -1))
    cache.batch_repeat_interleave(len(rows))
    seen = torch.ones(len(ends), begin + width, dtype=torch.long, device=device)  # what fills a row comes after all
    with lay_over(base.targets, layers_of([n for n in owner for _ in rows])):
        states = read_on(base, cache, tail, seen, places[begin:].expand(len(ends), -1))
    states = states[torch.arange(len(ends), device=device), last].float()
    return states.view(count, len(rows), -1)
