"""Arithmetic on factors against arithmetic on the matrices that they stand for, for ranks and modules at random."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weightdiff.arithmetic import add, compress, cosine, inner, leading, nearest, subtract
from weightdiff.diff import WeightDiff
from weightdiff.store import Store

SHAPES = {"0.p": (5, 7), "0.q": (6, 4), "1.r": (3, 3)}


@st.composite
def diffs(draw) -> WeightDiff:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    factors, dense = {}, {}
    for name, (out, inn) in SHAPES.items():
        kind = draw(st.sampled_from(["none", "factors", "dense", "both"]))
        rank = draw(st.integers(1, 4))
        if kind in ("factors", "both"):
            factors[name] = tuple(torch.randn(*s, generator=generator) for s in ((rank, inn), (out, rank)))
        if kind in ("dense", "both"):
            dense[f"{name}.weight"] = torch.randn(out, inn, generator=generator)
    return WeightDiff(factors, "base", {}, dense)


def matrices(diff: WeightDiff) -> torch.Tensor:
    """All changes as one vector."""
    full = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    for name, (a, b) in diff.factors.items():
        full[name] += b.double() @ a.double()
    for name, change in diff.dense.items():
        full[name.removesuffix(".weight")] += change.double()
    return torch.cat([m.flatten() for m in full.values()])


@settings(max_examples=200, deadline=None)
@given(diffs(), diffs(), st.floats(-3, 3))
def test_arithmetic_is_that_of_the_matrices(first, second, scale):
    x, y = matrices(first), matrices(second)
    assert torch.allclose(matrices(add(first, second)), x + y, atol=1e-5)
    assert torch.allclose(matrices(subtract(first, second)), x - y, atol=1e-5)
    assert torch.allclose(matrices(first.scaled(scale)), scale * x, atol=1e-4)
    assert inner(first, second) == pytest.approx(float(x @ y), abs=1e-4)
    length = float(x.norm() * y.norm())
    assert cosine(first, second) == pytest.approx(float(x @ y) / length if length else 0.0, abs=1e-5)


@settings(max_examples=50, deadline=None)
@given(diffs(), st.integers(1, 4))
def test_truncation_is_the_best_of_its_rank_and_full_rank_loses_nothing(diff, rank):
    low = WeightDiff(diff.factors, diff.base)
    for name in low.factors:
        size = torch.linalg.svdvals(low.to_dense(name).double())
        lost = (low.truncated(rank).to_dense(name) - low.to_dense(name)).norm()
        assert float(lost) == pytest.approx(float(size[rank:].norm()), abs=1e-4)
    twice = add(low, low)
    assert torch.allclose(matrices(twice.truncated(4)), matrices(twice), atol=1e-4)


@settings(max_examples=200, deadline=None)
@given(diffs(), st.integers(1, 7))
def test_compressed_by_rank_is_the_best_of_its_rank(diff, rank):
    low, kept = compress(diff, rank=rank)
    assert not low.dense and low.base == diff.base
    total = lost = 0.0
    for name in {*diff.factors, *(n.removesuffix(".weight") for n in diff.dense)}:
        sizes = torch.linalg.svdvals(diff.to_dense(name).double()).square()
        total, lost = total + float(sizes.sum()), lost + float(sizes[rank:].sum())
        assert len(low.factors[name][0]) <= min(rank, len(sizes))
        left = float((low.to_dense(name) - diff.to_dense(name)).square().sum())
        assert left == pytest.approx(float(sizes[rank:].sum()), abs=1e-3)
    assert kept == pytest.approx(1 - lost / total if total else 1.0, abs=1e-5)


@settings(max_examples=200, deadline=None)
@given(diffs(), st.floats(0.01, 1))
def test_compressed_by_energy_is_the_smallest_rank_that_keeps_it(diff, energy):
    low, kept = compress(diff, energy=energy)
    assert kept >= energy - 1e-6
    for name, (a, _) in low.factors.items():
        sums = torch.linalg.svdvals(diff.to_dense(name).double()).square().cumsum(0)
        rank, shares = len(a), sums / sums[-1]
        assert shares[rank - 1] >= energy - 1e-6 and (rank == 1 or shares[rank - 2] < energy)
    assert energy < 1 or torch.allclose(matrices(low), matrices(diff), atol=1e-4)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 30), st.integers(0, 99), st.floats(0, 1))
def test_leading_singular_values_of_larger_matrices_are_those_of_the_dense_svd(count, seed, noise):
    """These matrices are large enough for the randomized way."""
    generator = torch.Generator().manual_seed(seed)
    a, b, rest = (torch.randn(s, generator=generator) for s in ((30, 150), (130, 30), (130, 150)))
    matrix = b @ a + noise * rest
    torch.manual_seed(seed)
    state = torch.get_rng_state()
    u, sizes, v = leading(matrix, count)
    assert torch.equal(torch.get_rng_state(), state), "nobody else's random numbers are taken"
    wanted = torch.linalg.svdvals(matrix)
    assert torch.allclose(sizes, wanted[:count], rtol=1e-2)
    left = (matrix - u * sizes @ v.mT).square().sum()
    assert float(left) == pytest.approx(float(wanted[count:].square().sum()), rel=1e-2, abs=1e-3)


def test_what_compression_leaves_dense_and_what_it_refuses():
    vector, embedding = torch.randn(4), torch.randn(9, 4)
    diff = WeightDiff({}, dense={"0.norm.weight": vector, "embed.weight": embedding, "0.p.bias": vector})
    low, kept = compress(diff, rank=1)
    assert low.dense.keys() == diff.dense.keys() and not low.factors and kept == 1
    assert compress(WeightDiff({}, dense={"0.p.weight": torch.zeros(4, 5)}), energy=0.9) == (WeightDiff({}), 1)
    for wrong, message in (({}, "neither"), ({"rank": 0}, "rank is 0"), ({"energy": 1.5}, "energy is 1.5")):
        with pytest.raises(ValueError, match=message):
            compress(diff, **wrong)


def test_what_a_store_has_nearest(tmp_path):
    generator = torch.Generator().manual_seed(0)

    def some() -> WeightDiff:
        return WeightDiff(
            {"p": (torch.randn(1, 7, generator=generator), torch.randn(5, 1, generator=generator))}, "base"
        )

    made = [some() for _ in range(6)]
    store = Store(tmp_path / "s", "base")
    store.add([str(i) for i in range(6)], made)
    (first, best), (_, other) = nearest(add(made[3].scaled(2.0), made[1].scaled(0.1)), store, 2)
    assert first == "3" and best > 0.9 > other
    assert [i for i, _ in nearest(made[3], store, 5, ["1", "2"])] != [] and len(nearest(made[3], store, 9)) == 6


def test_diffs_of_different_models_are_refused():
    one, other = WeightDiff({}, "a"), WeightDiff({}, "b")
    with pytest.raises(ValueError, match="different base models, a and b"):
        add(one, other)
    with pytest.raises(ValueError, match="different base models"):
        cosine(one, other)
    wide = WeightDiff({"p": (torch.ones(1, 3), torch.ones(2, 1))})
    with pytest.raises(ValueError, match=r"'p' is \[2, 3\] in one diff and \[2, 4\]"):
        add(wide, WeightDiff({"p": (torch.ones(1, 4), torch.ones(2, 1))}))


def test_tied_weights_changed_in_two_manners_are_not_added():
    """Of a tied weight an embedding's factors change one place, a dense change both: what the sum is can't be told."""
    ends = ("model.embed_tokens.weight", "lm_head.weight")
    both = WeightDiff({}, dense={ends[0]: torch.ones(4, 2)})
    apart = WeightDiff({}, dense={name: torch.ones(4, 2) for name in ends})
    alone = WeightDiff({"model.embed_tokens": (torch.ones(1, 2), torch.ones(4, 1))})
    for one, other in ((both, apart), (both, alone), (apart, alone)):
        with pytest.raises(ValueError, match="where the base model ties these"):
            add(one, other)
    assert add(both, both).norm() == pytest.approx(2 * both.norm())
    assert add(alone, WeightDiff({"model.layers.0.q": (torch.ones(1, 2), torch.ones(2, 1))})).norm() > 0
