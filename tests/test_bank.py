"""The bank's invariants (float32, to 1e-5): a batch of diffs is each merged alone; off is the base bit for bit."""

import copy

import pytest
import torch

from tests.conftest import random_diff, shapes_of
from weightdiff.bank import Layer, lay_over
from weightdiff.decode import decode
from weightdiff.diff import WeightDiff, stack

IDS = torch.randint(0, 1000, (6, 9), generator=torch.Generator().manual_seed(1))


def merged_logits(base, diff_list: list[WeightDiff], ids: torch.Tensor) -> torch.Tensor:
    model = copy.deepcopy(base.model)
    for diff in diff_list:
        for name in diff.factors:
            model.get_submodule(name).weight += diff.to_dense(name)
    return model(ids).logits


@pytest.mark.parametrize("rows", [[0, 1, 2, 0, 2, 1], [0, 0, 1, 1, 2, 2]], ids=["mixed", "blocks"])
def test_batch_of_diffs_is_each_merged_alone(base, diffs, rows):
    adapter = random_diff(base, 4, seed=9)
    layers = [
        Layer(stack(diffs, shapes_of(base)), torch.tensor(rows)),
        Layer(stack([adapter], shapes_of(base))),
    ]
    with lay_over(base.targets, layers):
        together = base.model(IDS).logits
    for i, n in enumerate(rows):
        alone = merged_logits(base, [diffs[n], adapter], IDS[i : i + 1])[0]
        assert torch.allclose(together[i], alone, atol=1e-5)
    assert not torch.allclose(together, base.model(IDS).logits, atol=1e-2)


def test_strength_scales_each_rows_change(base, diffs):
    strength = torch.tensor([0.0, 0.5, 1.0])
    with lay_over(base.targets, [Layer(stack(diffs, shapes_of(base)), torch.arange(3), strength)]):
        together = base.model(IDS[:3]).logits
    for i in range(3):
        alone = merged_logits(base, [diffs[i].scaled(float(strength[i]))], IDS[i : i + 1])[0]
        assert torch.allclose(together[i], alone, atol=1e-5)


def test_bank_off_restores_the_base_bit_for_bit(base, diffs):
    before = base.model(IDS).logits
    with (
        pytest.raises(RuntimeError, match="boom"),
        lay_over(base.targets, [Layer(stack(diffs[:1], shapes_of(base)))]),
    ):
        raise RuntimeError("boom")
    assert torch.equal(before, base.model(IDS).logits)
    assert not any("forward" in vars(m) for m in base.targets.values())


def test_decoding_together_is_decoding_alone(base, diffs):
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12], [13]]
    shapes = shapes_of(base)
    together = decode(base, prompts, layers=[Layer(stack(diffs, shapes), torch.arange(3))], max_tokens=6)
    for i in range(3):
        layer = Layer(stack([diffs[i]], shapes), torch.tensor([0]))
        alone = decode(base, [prompts[i]], layers=[layer], max_tokens=6)[0]
        assert together[i].tokens == alone.tokens
        assert together[i].logprob == pytest.approx(alone.logprob, abs=1e-5)
