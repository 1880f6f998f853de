"""The bank's invariants (float32, to 1e-5): a batch of diffs is each merged alone; off is the base bit for bit."""

import copy

import pytest
import torch

from tests.conftest import random_diff
from weightdiff.bank import Layer, lay_over
from weightdiff.batch import Tokens, collate, cross_entropy_per_row
from weightdiff.decode import decode
from weightdiff.diff import WeightDiff, columns, stack

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
        Layer(stack(diffs, base.shapes), torch.tensor(rows)),
        Layer(stack([adapter], base.shapes)),
    ]
    with lay_over(base.targets, layers):
        together = base.model(IDS).logits
    for i, n in enumerate(rows):
        alone = merged_logits(base, [diffs[n], adapter], IDS[i : i + 1])[0]
        assert torch.allclose(together[i], alone, atol=1e-5)
    assert not torch.allclose(together, base.model(IDS).logits, atol=1e-2)


@pytest.mark.parametrize("strength", [1.5, None])
def test_diffs_of_unequal_ranks_side_by_side_are_those_padded_to_one_rank(base, strength):
    some = [random_diff(base, 1, 0), random_diff(base, 3, 1, ("q_proj", "up_proj")), random_diff(base, 2, 2)]
    some.append(WeightDiff({}, base.fingerprint))
    rows = [Tokens(tuple(IDS[i, :2].tolist()), tuple(IDS[i, 2:].tolist())) for i in range(4)]
    batch, adapter = collate(rows), stack([random_diff(base, 2, 9)], base.shapes)
    factor = strength or torch.tensor([0.5, 1.0, 2.0, 1.0])[batch.rows.row]
    losses, gradients = [], []
    for factors in (stack(some, base.shapes), columns(some, "cpu")):
        trained = [t.requires_grad_() for t in adapter.tensors()]
        with lay_over(base.targets, [Layer(factors, batch.rows.row, factor), Layer(adapter)]):
            losses.append(cross_entropy_per_row(base, batch))
        gradients.append(torch.autograd.grad(losses[-1].sum(), trained))
    assert torch.allclose(*losses, atol=1e-5) and not torch.allclose(losses[0], cross_entropy_per_row(base, batch))
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(*gradients, strict=True))


def test_rows_end_to_end_are_each_row_alone_and_so_are_the_gradients(base, diffs):
    """Tokens laid end to end, three diffs in stretches, against each row alone under its merged diff."""
    lengths, owner = [9, 4, 7, 2, 9, 5], [0, 0, 1, 2, 2, 2]
    rows = [Tokens(tuple(IDS[i, :2].tolist()), tuple(IDS[i, 2:n].tolist())) for i, n in enumerate(lengths)]
    rows = [Tokens(r.prompt, r.reply or (7,)) for r in rows]
    batch, factors = collate(rows), stack(diffs, base.shapes)
    for tensor in factors.tensors():
        tensor.requires_grad_()
    layer = Layer(factors, torch.tensor(owner)[batch.rows.row])
    with lay_over(base.targets, [layer]):
        losses = cross_entropy_per_row(base, batch)
    losses.sum().backward()
    for i, row in enumerate(rows):
        ids = torch.tensor([[*row.prompt, *row.reply]])
        logits = merged_logits(base, [diffs[owner[i]]], ids[:, :-1])[0, len(row.prompt) - 1 :]
        alone = torch.nn.functional.cross_entropy(logits, ids[0, len(row.prompt) :])
        assert losses[i].item() == pytest.approx(alone.item(), abs=1e-5)
    for n in range(3):  # the gradient of one diff, from its rows alone and padded through the other path of the bank
        single = stack([diffs[n]], base.shapes)
        for tensor in single.tensors():
            tensor.requires_grad_()
        mine = [row for row, o in zip(rows, owner, strict=True) if o == n]
        for row in mine:
            one = collate([row])
            with lay_over(base.targets, [Layer(single)]):
                cross_entropy_per_row(base, one).sum().backward()
        for name, a in single.a.items():
            rank = a.shape[1]
            ours = factors.a[name].grad[n, :rank], factors.b[name].grad[n, :, :rank]
            assert torch.allclose(ours[0], a.grad[0], atol=1e-5) and torch.allclose(
                ours[1], single.b[name].grad[0], atol=1e-5
            )


def test_stretches_of_padded_rows_are_single_rows(base, diffs):
    """Rows in long stretches of one diff take another path than rows one by one, and give the same."""
    ids = torch.randint(0, 1000, (24, 5), generator=torch.Generator().manual_seed(2))
    rows, strength = torch.arange(3).repeat_interleave(8), torch.linspace(0.5, 1.5, 24)
    factors, order = stack(diffs, base.shapes), torch.randperm(24, generator=torch.Generator().manual_seed(3))
    with lay_over(base.targets, [Layer(factors, rows, strength)]):
        stretches = base.model(ids).logits
    with lay_over(base.targets, [Layer(factors, rows[order], strength[order])]):
        single = base.model(ids[order]).logits
    assert torch.allclose(stretches[order], single, atol=1e-5)


def test_strength_scales_each_rows_change(base, diffs):
    strength = torch.tensor([0.0, 0.5, 1.0])
    with lay_over(base.targets, [Layer(stack(diffs, base.shapes), torch.arange(3), strength)]):
        together = base.model(IDS[:3]).logits
    for i in range(3):
        alone = merged_logits(base, [diffs[i].scaled(float(strength[i]))], IDS[i : i + 1])[0]
        assert torch.allclose(together[i], alone, atol=1e-5)


def test_bank_off_restores_the_base_bit_for_bit(base, diffs):
    before = base.model(IDS).logits
    with (
        pytest.raises(RuntimeError, match="boom"),
        lay_over(base.targets, [Layer(stack(diffs[:1], base.shapes))]),
    ):
        raise RuntimeError("boom")
    assert torch.equal(before, base.model(IDS).logits)
    assert not any("forward" in vars(m) for m in base.targets.values())


def test_decoding_together_is_decoding_alone(base, diffs):
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12], [13]]
    shapes = base.shapes
    together = decode(base, prompts, layers=[Layer(stack(diffs, shapes), torch.arange(3))], max_tokens=6)
    for i in range(3):
        layer = Layer(stack([diffs[i]], shapes), torch.tensor([0]))
        alone = decode(base, [prompts[i]], layers=[layer], max_tokens=6)[0]
        assert together[i].tokens == alone.tokens
        assert together[i].logprob == pytest.approx(alone.logprob, abs=1e-5)


@pytest.mark.parametrize("views", [1, 2])
def test_what_prompts_of_one_diff_begin_with_is_read_once_and_changes_no_reply(base, diffs, views, monkeypatch):
    begins, ends = (list(range(20, 41)), list(range(60, 78))), ([5, 6], [7], [8, 9, 10], [11])
    prompts = [begins[0] + ends[0], begins[0] + ends[1], begins[1] + ends[2], begins[1] + ends[3], begins[1] + ends[0]]
    rows, strength = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([1.0, 0.4][:views]).repeat(5)
    layers = [Layer(stack(diffs, base.shapes), rows.repeat_interleave(views), strength)]
    options = {"layers": layers, "max_tokens": 5, "views": views}
    alone, lengths, forward = decode(base, prompts, **options), [], type(base.model.get_decoder()).forward

    def counted(self, *rest, input_ids, **more):
        lengths.append(tuple(input_ids.shape))
        return forward(self, *rest, input_ids=input_ids, **more)

    monkeypatch.setattr(type(base.model.get_decoder()), "forward", counted)
    shared = decode(base, prompts, runs=[2, 3], **options)
    assert lengths[:2] == [(2 * views, 21), (5 * views, 3)]
    for one, other in zip(alone, shared, strict=True):
        assert one.tokens == other.tokens
        assert one.logprob == pytest.approx(other.logprob, abs=1e-5)
        assert one.views == pytest.approx(other.views, abs=1e-5)


@pytest.mark.parametrize("prompts", [[[5, 6, 7], [8, 9, 10]], [[5, 6, 7], [8, 9]]], ids=["alike", "padded"])
def test_decoding_is_the_models_own_greedy_choice_step_by_step(base, diffs, prompts):
    """With the cache and attention of our own, against whole forward passes of the merged model, as it comes."""
    layer = Layer(stack(diffs[:2], base.shapes), torch.arange(2))
    replies = decode(base, prompts, layers=[layer], max_tokens=5)
    for diff, prompt, reply in zip(diffs[:2], prompts, replies, strict=True):
        ids, scores = list(prompt), []
        for token in reply.tokens:
            logp = merged_logits(base, [diff], torch.tensor([ids]))[0, -1].log_softmax(-1)
            assert int(logp.argmax()) == token
            ids, scores = [*ids, token], [*scores, float(logp[token])]
        assert reply.logprob == pytest.approx(sum(scores) / len(scores), abs=1e-5)


def test_decoding_attends_in_its_own_way_and_leaves_the_models_as_it_was(base, monkeypatch):
    config, steps = base.model.config, []
    before = config._attn_implementation
    scores = torch.Tensor.softmax

    def boom(self, *rest):
        steps.append(self.shape)
        if len(steps) == 3:
            raise RuntimeError("boom")
        return scores(self, *rest)

    monkeypatch.setattr(torch.Tensor, "softmax", boom)
    with pytest.raises(RuntimeError, match="boom"):
        decode(base, [[5, 6, 7]] * 2, max_tokens=4)
    assert config._attn_implementation == before == "sdpa"
    assert steps[0] == (2, 2, 2, 4), "two rows, two heads that are kept, two that share each, four tokens seen"
