"""Attention for short rows against torch's own, row by row, with its gradients."""

import pytest
import torch
import torch.nn.functional as F

from tests.conftest import same_with_gradients
from weightdiff.attention import row_attention
from weightdiff.packed import Rows

LENGTHS = [4, 9, 1, 6]


def inputs(heads: int, groups: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(sum(LENGTHS), n, 8, generator=generator, requires_grad=True) for n in (heads, groups, groups)]


@pytest.mark.parametrize(("heads", "groups"), [(6, 2), (4, 4), (3, 1)])
@pytest.mark.parametrize("window", [9, 3])
def test_attention_is_each_rows_own(heads, groups, window):
    rows, ours, theirs = Rows.of(LENGTHS), inputs(heads, groups), inputs(heads, groups)
    out, _ = row_attention(*ours, rows.slot, rows.source, rows.branch, 9, window, 0.3)
    alone = []
    for row in range(len(LENGTHS)):
        q, k, v = (t[rows.row == row].transpose(0, 1) for t in theirs)
        k, v = (t.repeat_interleave(heads // groups, 0) for t in (k, v))
        back = torch.arange(q.shape[1])[:, None] - torch.arange(q.shape[1])
        seen = (back >= 0) & (back < window)
        alone.append(F.scaled_dot_product_attention(q, k, v, seen, scale=0.3).transpose(0, 1))
    wanted = torch.cat(alone)
    same_with_gradients(out, ours, wanted, theirs, atol=1e-5)


def test_the_operator_is_what_a_compiler_takes_it_for():
    for rows in (Rows.of(LENGTHS), Rows.branched([(2, (3, 5)), (10, ())])):
        options = (rows.slot, rows.source, rows.branch, rows.size[1], 9, 0.3)
        torch.library.opcheck(row_attention, (*inputs(6, 2), *options))
