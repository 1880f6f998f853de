"""Losses at label positions against logits written out, over more labels than go through the head at once."""

import pytest
import torch
import torch.nn.functional as F

from weightdiff import losses

LABELS, HIDDEN, VOCAB = 600, 16, 3000


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["cross-entropy", "divergence"])
def test_losses_and_gradients_are_those_of_logits_written_out(kind, bias):
    torch.manual_seed(0)
    head = torch.nn.Linear(HIDDEN, VOCAB, bias=bias).requires_grad_(False)
    states, kept = torch.randn(LABELS, HIDDEN) * 4, torch.randn(LABELS, HIDDEN)
    label, weight = torch.randint(0, VOCAB, (LABELS,)), torch.rand(LABELS)
    ours, theirs = states.clone().requires_grad_(), states.clone().requires_grad_()
    logp = head(theirs).log_softmax(-1)
    if kind == "cross-entropy":
        got, wanted = losses.cross_entropy(ours, head, label), F.nll_loss(logp, label, reduction="none")
    else:
        got = losses.divergence(ours, head, kept)
        wanted = F.kl_div(logp, head(kept).log_softmax(-1), reduction="none", log_target=True).sum(-1)
    assert torch.allclose(got, wanted, atol=1e-4)
    (got * weight).sum().backward()
    (wanted * weight).sum().backward()
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-5)


def test_a_likely_and_an_impossible_label_keep_their_losses():
    """Far beyond what a probability in float32 can say."""
    head = torch.nn.Linear(2, 2, bias=False).requires_grad_(False)
    head.weight.copy_(torch.eye(2))
    states = torch.tensor([[500.0, 0.0], [500.0, 0.0]])
    assert losses.cross_entropy(states, head, torch.tensor([0, 1])).tolist() == [0.0, 500.0]


def test_a_trained_head_gets_its_gradient_too():
    head, states = torch.nn.Linear(HIDDEN, VOCAB), torch.randn(3, HIDDEN, requires_grad=True)
    losses.cross_entropy(states, head, torch.tensor([1, 2, 3])).sum().backward()
    losses.divergence(states, head, torch.randn(3, HIDDEN)).sum().backward()
    assert head.weight.grad is not None and head.weight.grad.norm() > 0
