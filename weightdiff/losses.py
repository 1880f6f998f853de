"""Cross-entropy and KL divergence at label positions, straight from hidden states, without the logits of all labels.

A vocabulary is large and a model small: logits in float32, their softmax and its gradient would be most of a step's
memory. Here they live for a few rows at a time, in cache, and what is kept is each label's gradient for its hidden
state. The products with the head are as large as they would be anyway.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

ROWS = 256
"""Labels per product with the head: from here on a CPU's products run at full rate."""
_PIECE = 2**20
"""Numbers per softmax: what a CPU's cache holds in float32, beside the products' operands."""


def cross_entropy(
    states: Float[Tensor, "labels hidden"], head: nn.Linear, label: Int[Tensor, " labels"]
) -> Float[Tensor, " labels"]:
    """Cross-entropy of each label, in float32; its gradient goes to the states, and to a head that is trained."""
    if head.weight.requires_grad:  # a full finetune; its one model is what fills the memory then
        return nn.functional.cross_entropy(head(states).float(), label, reduction="none")
    return _HeadLoss.apply(states, head.weight, head.bias, label, None)


def divergence(
    states: Float[Tensor, "labels hidden"], head: nn.Linear, kept: Float[Tensor, "labels hidden"]
) -> Float[Tensor, " labels"]:
    """KL divergence from what the states predict to what the `kept` states do, in float32; differentiable in `states`.

    KL(kept || states) is the sum of kept's probability times the log-ratio of kept's to the states'.
    """
    if head.weight.requires_grad:
        wanted = head(kept).detach().float().log_softmax(-1)
        return nn.functional.kl_div(
            head(states).float().log_softmax(-1), wanted, reduction="none", log_target=True
        ).sum(-1)
    return _HeadLoss.apply(states, head.weight, head.bias, None, kept)


class _HeadLoss(torch.autograd.Function):
    """Each label's loss, and, since it hangs on one state alone, at once that state's gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Float[Tensor, "labels hidden"],
        weight: Float[Tensor, "vocab hidden"],
        bias: Float[Tensor, " vocab"] | None,
        label: Int[Tensor, " labels"] | None,
        kept: Float[Tensor, "labels hidden"] | None,
    ) -> Float[Tensor, " labels"]:
        wanted = ctx.needs_input_grad[0]
        losses = torch.empty(len(states), device=states.device)
        gradient = torch.empty_like(states) if wanted else None
        piece = max(1, _PIECE // len(weight)) if states.device.type == "cpu" else ROWS
        for start in range(0, len(states), ROWS):
            rows = slice(start, start + ROWS)
            logits = nn.functional.linear(states[rows], weight, bias)
            base = None if kept is None else nn.functional.linear(kept[rows], weight, bias)
            for at in range(0, len(logits), piece):
                here = slice(start + at, min(start + at + piece, start + len(logits)))
                z, own = logits[at : at + piece], None if label is None else label[here, None]
                losses[here], slope = _row_losses(z, own, None if base is None else base[at : at + piece])
                if wanted:
                    z.copy_(slope)
            if gradient is not None:
                torch.mm(logits, weight, out=gradient[rows])
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0][:, None].to(gradient.dtype), None, None, None, None


def _row_losses(
    logits: Float[Tensor, "rows vocab"],
    label: Int[Tensor, "rows 1"] | None,
    kept: Float[Tensor, "rows vocab"] | None,
) -> tuple[Float[Tensor, " rows"], Float[Tensor, "rows vocab"]]:
    """Losses of a few rows, and their gradients for the logits."""
    z = logits.float()
    p, total = _softmax(z)
    if label is not None:
        losses = total - z.gather(1, label)[:, 0]
        return losses, p.scatter_add_(1, label, torch.full_like(label, -1, dtype=p.dtype))
    assert kept is not None
    zk = kept.float()
    q, total_kept = _softmax(zk)
    losses = (zk.sub_(z).mul_(q)).sum(-1) - total_kept + total
    return losses, p.sub_(q)


def _softmax(z: Float[Tensor, "rows vocab"]) -> tuple[Float[Tensor, "rows vocab"], Float[Tensor, " rows"]]:
    """Probabilities, and the log of the sum that they were divided by: the likeliest token's share tells it."""
    most, at = z.max(-1, keepdim=True)
    p = z.softmax(-1)
    return p, (most - p.gather(1, at).log())[:, 0]
