"""Preference losses: to make what is wanted likelier than the base model does, and what isn't less likely.

They know log-ratios only: `log p(reply | prompt)` of the finetune less that of the base model. Each diff has a row of
them, and nothing crosses rows. TRL's defaults, both kinds of reply weighing 1.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def dpo(chosen: Float[Tensor, "n pairs"], rejected: Float[Tensor, "n pairs"], beta: float) -> Float[Tensor, " n"]:
    """Each diff's DPO loss: the mean of `-log sigmoid(beta (chosen - rejected))` (Rafailov et al., arXiv 2305.18290).

    Args:
        chosen: log-ratios of the wanted replies, in nats.
        rejected: those of the unwanted replies to the same prompts.
        beta: the lower, the further a finetune goes from the base model before the loss is content.
    """
    return -F.logsigmoid(beta * (chosen - rejected)).mean(1)


def kto(
    desirable: Float[Tensor, "n wanted"],
    undesirable: Float[Tensor, "n unwanted"],
    zero: Float[Tensor, " n"],
    beta: float,
) -> Float[Tensor, " n"]:
    """Each diff's KTO loss (Ethayarajh et al., arXiv 2402.01306): how far its replies are from a sure gain.

    That is the mean of `1 - sigmoid(beta (desirable - zero))` and `1 - sigmoid(beta (zero - undesirable))`.

    Args:
        desirable: log-ratios of the wanted replies, in nats.
        undesirable: those of the unwanted replies, to whichever prompts.
        zero: each diff's `zero_point`.
        beta: as for `dpo`.
    """
    short = torch.cat([zero[:, None] - desirable, undesirable - zero[:, None]], 1)
    return F.sigmoid(beta * short).mean(1)


def zero_point(mismatched: Float[Tensor, "n rows"]) -> Float[Tensor, " n"]:
    """Where KTO counts gains and losses from: an estimate of each diff's KL divergence to the base, never below 0.

    Args:
        mismatched: log-ratios of replies to other prompts than their own, in nats; no gradient comes back to them.
    """
    return mismatched.detach().mean(1).clamp_min(0)
