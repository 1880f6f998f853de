"""Rows without padding: a transformer's linear layers see one long row of tokens, and only attention sees rows.

Rows of unequal length waste a quarter of the arithmetic on padding, since nearly all of it is in linear layers.
Laid end to end they waste none; attention, a few percent of the work at these lengths, gets them padded. What several
texts begin with alike is laid once: a row may go on in branches, none of which sees another.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from weightdiff.attention import SHORT, row_attention, visible

NAME = "weightdiff_rows"


@dataclass(frozen=True)
class Rows:
    """Where each token of a packed row belongs.

    Attributes:
        row, place: row of each token, and its place in the text that it is of.
        slot: its place among the padded rows laid end to end.
        source: the token in each of these places; for padding any token will do, as nobody looks at it.
        branch: of the token in each of these places, the number of its branch, 0 before the row goes on in several, and
            its `place`; empty where no row has branches.
        size: `(batch, time)` when padded.
    """

    row: Int[Tensor, " tokens"]
    place: Int[Tensor, " tokens"]
    slot: Int[Tensor, " tokens"]
    source: Int[Tensor, " slots"]
    branch: Int[Tensor, "2 branched"]
    size: tuple[int, int]

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device | str = "cpu") -> "Rows":
        """Rows of these lengths, laid end to end."""
        return cls.branched([(length, ()) for length in lengths], device)

    @classmethod
    def branched(cls, lengths: Sequence[tuple[int, Sequence[int]]], device: torch.device | str = "cpu") -> "Rows":
        """Rows laid end to end: of each the length of its trunk, and those of the branches that follow one another."""
        whole = np.array([trunk + sum(branches) for trunk, branches in lengths])
        # Of each row its trunk, then its branches, all of which go on from where the trunk ends.
        pieces = [(length, trunk * (k > 0), k) for trunk, bs in lengths for k, length in enumerate((trunk, *bs))]
        size, first, number = np.array(pieces).T
        time, token = int(whole.max()), np.arange(whole.sum())
        row = np.arange(len(whole)).repeat(whole)
        slot = token + row * time - (whole.cumsum() - whole)[row]
        place, number = token + (first - size.cumsum() + size).repeat(size), number.repeat(size)
        source = np.zeros(len(whole) * time, dtype=np.int64)
        source[slot] = token
        plain = not any(branches for _, branches in lengths)
        branch = np.zeros((2, 0), dtype=np.int64) if plain else np.stack([number, place])[:, source]
        row, place, slot, source, branch = (torch.from_numpy(t).to(device) for t in (row, place, slot, source, branch))
        return cls(row, place, slot, source, branch, (len(whole), time))


class _Pad(torch.autograd.Function):
    """`[tokens, …]` to `[slots, …]`; rows are copied whole, and no gradient comes back from padding."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slot: Tensor, source: Tensor) -> Tensor:
        ctx.save_for_backward(slot)
        return x.index_select(0, source)

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor, None, None]:
        (slot,) = ctx.saved_tensors
        return grad[0].index_select(0, slot), None, None


class _Unpad(torch.autograd.Function):
    """`[slots, …]` to `[tokens, …]`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slot: Tensor) -> Tensor:
        ctx.save_for_backward(slot)
        ctx.slots = len(x)
        return x.index_select(0, slot)

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor, None]:
        (slot,) = ctx.saved_tensors
        return grad[0].new_zeros(ctx.slots, *grad[0].shape[1:]).index_copy_(0, slot, grad[0]), None


def _attention(
    module: nn.Module,
    query: Float[Tensor, "one heads tokens head"],
    key: Float[Tensor, "one kv_heads tokens head"],
    value: Float[Tensor, "one kv_heads tokens head"],
    attention_mask: Tensor | None,
    *,
    rows: Rows,
    sliding_window: int | None = None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Float[Tensor, "one tokens heads head"], None]:
    batch, time = rows.size
    query, key, value = (t[0].transpose(0, 1) for t in (query, key, value))
    if query.device.type == "cpu" and time <= SHORT:
        window, scale = sliding_window or time, scaling or query.shape[-1] ** -0.5
        out, _ = row_attention(query, key, value, rows.slot, rows.source, rows.branch, time, window, scale)
        return out[None], None
    padded = (_Pad.apply(t, rows.slot, rows.source).view(batch, time, *t.shape[1:]) for t in (query, key, value))
    query, key, value = (t.transpose(1, 2) for t in padded)
    # Padding comes last in each row, so that causality alone keeps it out.
    seen = None
    if rows.branch.numel() or (sliding_window and time > sliding_window):
        seen = visible(rows.branch, time, sliding_window or time, query.device)[:, None]
    out, _ = sdpa_attention_forward(module, query, key, value, seen, is_causal=True, scaling=scaling, **options)
    return _Unpad.apply(out.reshape(batch * time, *out.shape[2:]), rows.slot)[None], None


AttentionInterface.register(NAME, _attention)


def packed_states(model: PreTrainedModel, ids: Int[Tensor, " tokens"], rows: Rows) -> Float[Tensor, "tokens hidden"]:
    """Final hidden states of rows laid end to end.

    Args:
        model: a causal language model of transformers that attends by its attention interface.
        ids: the rows' tokens, one row after the other.
        rows: where each token belongs.

    Raises:
        ValueError: the model mixes tokens by more than causal attention, so that packed rows would leak.
    """
    decoder = model.get_decoder()
    config = decoder.config  # of the text alone, where the model sees pictures too
    _check_packable(decoder)
    before, config._attn_implementation = config._attn_implementation, NAME
    try:
        # A four-dimensional mask is taken as it is, which keeps the model from building one over all tokens.
        return decoder(
            input_ids=ids[None],
            position_ids=rows.place[None],
            attention_mask=torch.zeros(1, 1, 1, 1, device=ids.device),
            use_cache=False,
            rows=rows,
        ).last_hidden_state[0]
    finally:
        config._attn_implementation = before


def _check_packable(decoder: PreTrainedModel) -> None:
    """Raise a ValueError for a model in which a token is reached by others than those before it in its row."""
    config, known = decoder.config, ("full_attention", "sliding_attention")
    odd = sorted({kind for kind in getattr(config, "layer_types", None) or () if kind not in known})
    if getattr(config, "use_bidirectional_attention", False):
        odd.append("bidirectional attention")
    if odd or not decoder._supports_attention_backend:
        what = f"layers of the kind {', '.join(odd)}" if odd else "its own way to attend"
        raise ValueError(
            f"a model of the type {config.model_type!r} has {what}, and rows can't be laid end to end in it. Expected "
            "a model with causal attention only, over all tokens or a sliding window (Llama, Qwen3, Gemma 3, …)."
        )
