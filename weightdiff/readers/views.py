"""A diff read at several strengths at once, in contrast with the unchanged base model under the same adapter.

Finetunes differ in size: what is garbled at full strength may be plain at half of it. And where an adapter can't read a
diff, it says what it says of the base model, its prior; so a token is chosen by how likely the finetuned model makes
it *and* by how much likelier than the base model does (Li et al., Contrastive Decoding, arXiv 2210.15097, where the
second model is a weaker one).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from weightdiff.decode import Reply


@dataclass(frozen=True)
class Views:
    """How a diff is looked at: a token scores its mean probability over strengths, and its gain over the base model.

    Attributes:
        strengths: factors on the diff, at least one.
        contrast: weight of log p(finetuned) - log p(base); 0 doesn't choose by it.
        within: tokens with less than this share of the likeliest one's probability aren't chosen.
    """

    strengths: tuple[float, ...] = (1.0,)
    contrast: float = 0.0
    within: float = 0.1

    @property
    def all(self) -> tuple[float, ...]:
        """The strengths, and 0 for the base model."""
        return (*self.strengths, 0.0)

    def scores(self, logp: Float[Tensor, "prompts views vocab"]) -> Float[Tensor, "prompts vocab"]:
        """Scores of the next token, from its log-probabilities in `all` views."""
        mixed = logp[:, :-1].logsumexp(1) - math.log(len(self.strengths))
        scores = mixed + self.contrast * (mixed - logp[:, -1])
        return scores.masked_fill(mixed < mixed.amax(-1, keepdim=True) + math.log(self.within), float("-inf"))


def gain(reply: Reply) -> float:
    """By how much the finetune makes a reply likelier: mean log-probability over strengths, less the base model's."""
    *seen, base = reply.views
    return sum(seen) / len(seen) - base


def rows_of(owner: Tensor, views: Views) -> tuple[Tensor, Tensor]:
    """For each prompt's views, the diff that it takes and at which strength."""
    strengths = torch.tensor(views.all, device=owner.device)
    return owner.repeat_interleave(len(strengths)), strengths.repeat(len(owner))
