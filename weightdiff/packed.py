"""Rows without padding: a transformer's linear layers see one long row of tokens, and only attention sees rows.

Rows of unequal length waste a quarter of the arithmetic on padding, since nearly all of it is in linear layers.
Laid end to end they waste none; attention, a few percent of the work at these lengths, gets them padded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from weightdiff.attention import SHORT, row_attention

NAME = "weightdiff_rows"


@dataclass(frozen=True)
class Rows:
    """Where each token of a packed row belongs.

    Attributes:
        row, place: batch row of each token, and its place in that row.
        slot: its place among the padded rows laid end to end.
        source: the token in each of these places; for padding any token will do, as nobody looks at it.
        size: `(batch, time)` when padded.
    """

    row: Int[Tensor, " tokens"]
    place: Int[Tensor, " tokens"]
    slot: Int[Tensor, " tokens"]
    source: Int[Tensor, " slots"]
    size: tuple[int, int]

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device | str = "cpu") -> "Rows":
        """Rows of these lengths, laid end to end."""
        time, n = max(lengths), sum(lengths)
        row = torch.tensor([i for i, length in enumerate(lengths) for _ in range(length)])
        place = torch.tensor([p for length in lengths for p in range(length)])
        slot = row * time + place
        source = torch.zeros(len(lengths) * time, dtype=torch.long).index_copy(0, slot, torch.arange(n))
        row, place, slot, source = (t.to(device) for t in (row, place, slot, source))
        return cls(row, place, slot, source, (len(lengths), time))


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
        out, _ = row_attention(query, key, value, rows.slot, rows.source, time, window, scale)
        return out[None], None
    padded = (_Pad.apply(t, rows.slot, rows.source).view(batch, time, *t.shape[1:]) for t in (query, key, value))
    query, key, value = (t.transpose(1, 2) for t in padded)
    # Padding comes last in each row, so that causality alone keeps it out.
    band = _band(time, sliding_window, query.device)
    out, _ = sdpa_attention_forward(module, query, key, value, band, is_causal=True, scaling=scaling, **options)
    return _Unpad.apply(out.reshape(batch * time, *out.shape[2:]), rows.slot)[None], None


def _band(time: int, window: int | None, device: torch.device) -> Bool[Tensor, "1 1 time time"] | None:
    """Which places a layer with a sliding window sees: the last `window`; None where causality alone says it."""
    if window is None or time <= window:
        return None
    place = torch.arange(time, device=device)
    back = place[:, None] - place[None]
    return ((back >= 0) & (back < window))[None, None]


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
