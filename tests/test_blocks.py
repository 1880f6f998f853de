"""The layer under many diffs against the plain formula, gradients included; and how diffs are gathered in blocks."""

import pytest
import torch
from torch import Tensor

from tests.conftest import same_with_gradients
from weightdiff.blocks import COLUMNS as WIDTHS
from weightdiff.blocks import block_linear, blocks_of

CPU, COLUMNS = torch.device("cpu"), WIDTHS["cpu"]


def plain(x: Tensor, weight: Tensor, a: Tensor, b: Tensor, owner: Tensor, strength: Tensor) -> Tensor:
    """`y = x Wᵀ + s·(x Aᵀ) B` for each token with its own diff; `a` is `[n, rank, in]`, `b` `[n, rank, out]`."""
    hidden = torch.einsum("ti,tri->tr", x, a[owner]) * strength[:, None]
    return x @ weight.T + torch.einsum("tr,tro->to", hidden, b[owner])


@pytest.mark.parametrize(("n", "rank"), [(3, 1), (40, 1), (5, 4), (3, 24)])
@pytest.mark.parametrize("strengths", [False, True])
def test_blocks_are_the_plain_formula_with_its_gradients(n, rank, strengths):
    torch.manual_seed(0)
    owner = torch.arange(n).repeat_interleave(torch.randint(1, 6, (n,)))
    weight, x = torch.randn(6, 5).double(), torch.randn(len(owner), 5).double()
    a, b = torch.randn(n, rank, 5).double(), torch.randn(n, rank, 6).double()
    strength = torch.rand(len(owner)) if strengths else None
    ends = torch.unique_consecutive(owner, return_counts=True)[1].cumsum(0).tolist()
    runs = list(zip(range(n), [0, *ends[:-1]], ends, strict=True))
    blocks = blocks_of(runs, range(0, (n + 1) * rank, rank), strength, CPU)
    assert len(blocks) == -(-n // max(1, COLUMNS // rank))
    spans = torch.tensor([(k.diffs[0] * rank, k.diffs[1] * rank, *k.tokens, 1) for k in blocks])
    gates = torch.cat([k.gate.flatten() for k in blocks])
    ours = [t.clone().requires_grad_() for t in (x, a, b)]
    theirs = [t.clone().requires_grad_() for t in (x, a, b)]
    y, _ = block_linear(ours[0], weight, None, ours[1].flatten(0, 1), ours[2].flatten(0, 1), spans, gates)
    wanted = plain(theirs[0], weight, *theirs[1:], owner, torch.ones(len(owner)) if strength is None else strength)
    same_with_gradients(y, ours, wanted, theirs, atol=1e-6)


def test_diffs_far_apart_or_in_any_order_keep_to_blocks_of_neighbours():
    runs = [(0, 0, 2), (1, 2, 3), (COLUMNS, 3, 5), (COLUMNS - 1, 5, 6)]
    first, second = blocks_of(runs, range(COLUMNS + 2), None, CPU)
    assert (first.diffs, first.tokens) == ((0, 2), (0, 3))
    assert (second.diffs, second.tokens) == ((COLUMNS - 1, COLUMNS + 1), (3, 6))
    assert first.gate.tolist() == [[1, 0], [1, 0], [0, 1]] and second.gate.tolist() == [[0, 1], [0, 1], [1, 0]]


@pytest.mark.parametrize("trained", [True, False])
def test_the_operator_is_what_a_compiler_takes_it_for(trained):
    a, b = (torch.randn(3, size, requires_grad=trained) for size in (5, 6))
    spans = torch.tensor([[0, 2, 0, 3, trained], [2, 3, 0, 4, trained]])
    arguments = (torch.randn(4, 5, requires_grad=True), torch.randn(6, 5), torch.randn(6), a, b, spans, torch.rand(10))
    torch.library.opcheck(block_linear, arguments)
