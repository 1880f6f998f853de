"""What many prompts to one model begin with, read once and kept once: all rows that go on from it attend to it there.

A hint of hundreds of tokens stands before dozens of questions and samples. With a copy for each row its keys and values
would be moved at every token that is written.
"""

from dataclasses import dataclass, field
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "weightdiff_decode"


@dataclass
class Trunk:
    """What each run of rows begins with.

    Attributes:
        cache: its keys and values, a row for each run.
        seen: where a run has a token in the cache, which is padded on the left.
        run: the run of each row that goes on from there.
    """

    cache: DynamicCache
    seen: Bool[Tensor, "runs read"]
    run: Int[Tensor, " rows"]
    _place: Int[Tensor, " rows"] = field(init=False)
    _most: int = field(init=False)

    def __post_init__(self) -> None:
        self.keep(torch.arange(len(self.run), device=self.run.device))

    @property
    def length(self) -> Int[Tensor, " rows"]:
        """Tokens that each row begins with."""
        return self.seen.sum(1)[self.run]

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Only these rows go on."""
        self.run = self.run[rows]
        each = torch.nn.functional.one_hot(self.run, len(self.seen))
        self._most = int(each.sum(0).max())
        self._place = self.run * self._most + (each.cumsum(0) - 1).gather(1, self.run[:, None])[:, 0]

    def attended(
        self,
        query: Float[Tensor, "rows kv_heads tokens head"],
        key: Float[Tensor, "rows kv_heads new head"],
        value: Float[Tensor, "rows kv_heads new head"],
        mask: Bool[Tensor, "rows 1 tokens new"],
        layer: int,
        scale: float,
        back: Int[Tensor, "rows tokens"],
        window: int | None,
    ) -> Float[Tensor, "rows kv_heads tokens head"]:
        """Attention to a row's own tokens and to those that its run begins with, in one softmax.

        Args:
            query: of the new tokens, heads that share keys laid one after another.
            key, value: of the row's own tokens, the new ones among them.
            mask: which of these each sees.
            layer: number of the layer.
            scale: of the scores.
            back: how far each new token is from the first of its run.
            window: how far back a layer sees; None for all the way.
        """
        stored = self.cache.layers[layer]
        assert isinstance(stored, DynamicLayer) and stored.keys is not None and stored.values is not None
        keys, values = stored.keys, stored.values
        kept = keys.shape[2]  # a sliding layer keeps the last ones only
        seen = self.seen[:, -kept:][self.run][:, None, None]
        if window is not None:
            at = (self.seen.cumsum(1) - 1)[:, -kept:][self.run]
            seen = seen & (back[:, None, :, None] - at[:, None, None] < window)
        far = self._rows(self._runs(query) @ keys.mT, query.shape[2])
        scores = torch.cat([far.float(), (query @ key.mT).float()], -1) * scale
        visible = torch.cat([seen.expand(-1, -1, query.shape[2], -1), mask], -1)
        share = scores.masked_fill(~visible, float("-inf")).softmax(-1).to(value.dtype)
        near = share[..., kept:] @ value
        return near + self._rows(self._runs(share[..., :kept]) @ values, query.shape[2])

    def _runs(self, x: Float[Tensor, "rows heads tokens size"]) -> Float[Tensor, "runs heads all size"]:
        """A run's rows one after another, so that one product does for all of them; padded with zeros."""
        runs, (_, heads, tokens, size) = len(self.seen), x.shape
        laid = x.new_zeros(runs * self._most, heads, tokens, size).index_copy_(0, self._place, x)
        return laid.view(runs, self._most, heads, tokens, size).transpose(1, 2).reshape(runs, heads, -1, size)

    def _rows(self, x: Float[Tensor, "runs heads all size"], tokens: int) -> Float[Tensor, "rows heads tokens size"]:
        """Back from `_runs`."""
        runs, heads, _, size = x.shape
        laid = x.view(runs, heads, self._most, tokens, size).transpose(1, 2)
        return laid.reshape(runs * self._most, heads, tokens, size)[self._place]


def _attention(
    module: nn.Module,
    query: Float[Tensor, "batch heads time head"],
    key: Float[Tensor, "batch kv_heads seen head"],
    value: Float[Tensor, "batch kv_heads seen head_out"],
    attention_mask: Bool[Tensor, "batch #heads time seen"] | None,  # noqa: F821 - a shape, no forward reference
    *,
    scaling: float | None = None,
    trunk: Trunk | None = None,
    position: Int[Tensor, "batch time"] | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Float[Tensor, "batch time heads head_out"], None]:
    """Attention of one new token a row, its scores written out; heads that share keys go through one product.

    torch's fused attention on a CPU is made for many tokens: for one a row, in 64 rows of nine heads over three, it
    takes six times as long (1.4 against 0.2 ms), a quarter of the whole step.
    """
    batch, heads, time, size = query.shape
    if trunk is None and time > 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    scale, shared = (size**-0.5 if scaling is None else scaling), heads // key.shape[1]
    together = query.reshape(batch, key.shape[1], shared * time, size)
    if trunk is None:
        scores = (together @ key.mT).float() * scale
        if attention_mask is not None:
            scores = scores.masked_fill(~attention_mask, float("-inf"))
        out = scores.softmax(-1).to(value.dtype) @ value
    else:
        assert position is not None
        if attention_mask is None:
            attention_mask = query.new_ones(1, 1, time, key.shape[2], dtype=torch.bool).tril(key.shape[2] - time)
        mask, back = attention_mask.expand(batch, -1, -1, -1).repeat(1, 1, shared, 1), position.repeat(1, shared)
        layer = cast(int, module.layer_idx)
        out = trunk.attended(together, key, value, mask, layer, scale, back, sliding_window)
    return out.reshape(batch, heads, time, -1).transpose(1, 2), None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
