"""Compiled blocks give what the blocks give, for any number of tokens, and are given back."""

import subprocess
import sys

import pytest
import torch

from tests.tiny import tiny_base
from weightdiff.bank import Layer, lay_over
from weightdiff.base import Base
from weightdiff.batch import Tokens, collate, cross_entropy_per_row
from weightdiff.compiled import PAYS, can_compile, compiled_blocks
from weightdiff.diff import Factors


def losses_and_gradients(base: Base, lengths: list[int], rank: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Of three diffs with two rows each."""
    generator = torch.Generator().manual_seed(sum(lengths))
    ids = [torch.randint(0, 200, (n,), generator=generator).tolist() for n in lengths]
    batch = collate([Tokens(tuple(i[:3]), tuple(i[3:])) for i in ids])
    a = {n: torch.randn(3, rank, i, generator=generator) / i**0.5 for n, (_, i) in base.shapes.items()}
    b = {n: torch.randn(3, o, rank, generator=generator) / o**0.5 for n, (o, _) in base.shapes.items()}
    factors = Factors(a, b)
    parameters = [t.requires_grad_() for t in factors.tensors()]
    with lay_over(base.targets, [Layer(factors, batch.rows.row // 2)]):
        losses = cross_entropy_per_row(base, batch)
        losses.sum().backward()
    return losses, [p.grad for p in parameters if p.grad is not None]


def check(kind: str) -> None:
    """Three steps of different sizes, the last of another rank, with and without compiling."""
    base = tiny_base(kind)
    steps = [([9, 12, 10, 24, 8, 9], 1), ([30, 22, 11, 9, 15, 17], 1), ([9, 14, 10, 25, 8, 9], 6)]
    plain = [losses_and_gradients(base, *step) for step in steps]
    with compiled_blocks(base, 0, wanted=True) as compiled:
        assert compiled
        for step, (losses, gradients) in zip(steps, plain, strict=True):
            got, slopes = losses_and_gradients(base, *step)
            assert torch.allclose(got, losses, atol=1e-5)
            assert len(slopes) == len(gradients) > 0
            for mine, right in zip(slopes, gradients, strict=True):
                assert torch.allclose(mine, right, atol=1e-4)
    assert torch._dynamo.utils.counters["frames"]["ok"] >= 2, "nothing was compiled"
    assert not any("forward" in vars(block) for block in base.model.get_decoder().layers)


@pytest.mark.parametrize("kind", ["gemma3"])
def test_compiled_blocks_give_what_the_blocks_give(kind):
    if not can_compile(torch.device("cpu")):
        pytest.skip("no C++ compiler with Python's headers here; blocks then run as they are")
    # In a process of its own: the tests' check of every shape in a signature is nothing that can be compiled.
    done = subprocess.run([sys.executable, "-m", "tests.test_compiled", kind], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_short_work_is_not_compiled(base):
    with compiled_blocks(base, PAYS - 1) as compiled:
        assert not compiled


if __name__ == "__main__":
    check(sys.argv[1])
