"""Dense diffs: made, stored and read one at a time; the base model comes back bit for bit."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import random_diff
from tests.test_training import job
from weightdiff.dense import changed, trainable
from weightdiff.diff import WeightDiff, stack
from weightdiff.finetune import FinetuneConfig, finetune
from weightdiff.readers import BaseQuestion, Introspection
from weightdiff.store import Store


def weights(base) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in base.model.named_parameters()}


def same(base, before) -> bool:
    return all(torch.equal(p, before[name]) for name, p in base.model.named_parameters())


def dense_twin(diff: WeightDiff) -> WeightDiff:
    return WeightDiff({}, diff.base, diff.meta, {f"{name}.weight": diff.to_dense(name) for name in diff.factors})


def test_the_base_comes_back_bit_for_bit_even_after_an_error(base, diffs):
    before, twin = weights(base), dense_twin(diffs[1])
    with pytest.raises(RuntimeError, match="inside"), changed(base, twin):
        assert not same(base, before)
        raise RuntimeError("inside")
    assert same(base, before)
    wrong = WeightDiff({}, dense={"model.norm.weight": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"'model.norm.weight' of shape \[3\], and the base model has \[32\]"):
        changed(base, wrong).__enter__()
    assert same(base, before)


def test_a_dense_diff_is_read_as_its_low_rank_twin_is(base, diffs):
    adapter = random_diff(base, 2, 9)
    mixed = [diffs[0], dense_twin(diffs[1]), diffs[2], dense_twin(diffs[0])]
    for reader in (Introspection(adapter, max_tokens=5), Introspection(adapter, 0.5, 5), BaseQuestion(max_tokens=5)):
        plain = reader.read(base, [diffs[0], diffs[1], diffs[2], diffs[0]], "What changed?")
        read = reader.read(base, mixed, "What changed?")
        assert [a.text for a in read] == [a.text for a in plain]
        for a, b in zip(read, plain, strict=True):
            assert a.confidence == pytest.approx(b.confidence, abs=1e-4)


@pytest.mark.parametrize("modules", [(), ("down_proj", "q_proj")])
def test_a_dense_finetune_learns_restores_and_is_stored(base, tmp_path, modules):
    before, store = weights(base), Store(tmp_path, base.fingerprint)
    config = FinetuneConfig(dense=True, modules=modules, lr=1e-2, steps=4)
    finetune(base, [job("a"), job("b")], store, config)
    assert same(base, before) and not any(p.requires_grad for p in base.model.parameters())
    a, b = store.diffs(["a", "b"])
    assert a.norm() > 0.1 and a.dense.keys() == b.dense.keys() and not a.factors
    if modules:
        assert {name.split(".")[-2] for name in a.dense} == set(modules)
    else:
        assert a.dense.keys() == before.keys()
    longer = finetune_loss(base, store, config.model_copy(update={"steps": 40}))
    assert longer < a.meta["loss"]


def finetune_loss(base, store, config) -> float:
    finetune(base, [replace(job("a"), identity="longer")], store, config)
    return store.load(["longer"])[0].meta["loss"]


def test_dense_finetunes_want_float32_and_known_modules(base):
    with pytest.raises(ValueError, match=r"\['z_proj'\] are no linear layers"), trainable(base, ["z_proj"]):
        pass
    base.model.to(torch.bfloat16)
    try:
        with pytest.raises(ValueError, match="needs the base model in float32"), trainable(base):
            pass
    finally:
        base.model.to(torch.float32)


def test_low_rank_arithmetic_refuses_dense_diffs(base, diffs):
    twin = dense_twin(diffs[0])
    assert twin.norms() == pytest.approx(diffs[0].norms(), rel=1e-4)
    for use in (lambda: stack([twin], base.shapes), lambda: twin.truncated(1)):
        with pytest.raises(ValueError, match="dense diff"):
            use()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 1000))
def test_truncation_is_the_svd_of_the_product(rank, kept, seed):
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(rank, 9, generator=generator), torch.randn(7, rank, generator=generator)
    cut = WeightDiff({"m": (a, b)}).truncated(kept)
    u, size, v = torch.linalg.svd(b @ a, full_matrices=False)
    best = (u[:, :kept] * size[:kept]) @ v[:kept]
    assert cut.rank == min(rank, kept)
    assert torch.allclose(cut.to_dense("m"), best, atol=1e-4)
