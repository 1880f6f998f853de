"""Arithmetic on factors against arithmetic on the matrices that they stand for, for ranks and modules at random."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weightdiff.arithmetic import add, cosine, inner, nearest, subtract
from weightdiff.diff import WeightDiff
from weightdiff.store import Store

SHAPES = {"p": (5, 7), "q": (6, 4), "r": (3, 3)}


@st.composite
def diffs(draw) -> WeightDiff:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    factors, dense = {}, {}
    for name, (out, inn) in SHAPES.items():
        kind = draw(st.sampled_from(["none", "factors", "dense"]))
        rank = draw(st.integers(1, 4))
        if kind == "factors":
            factors[name] = tuple(torch.randn(*s, generator=generator) for s in ((rank, inn), (out, rank)))
        elif kind == "dense":
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
