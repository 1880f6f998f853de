"""Responses: how much a weight change answers to inputs of its layers, `‖ΔW x‖`, from the weights alone.

Each step of finetuning adds to a layer's weights a product of a gradient and of what the layer was given then; so the
change responds more to inputs that it was made from than to others. In early layers an input hangs on its token more
than on what is around it, and what responds most is what the finetune was fed. Knows no triggers and no words.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from weightdiff.base import Base
from weightdiff.diff import WeightDiff

Inputs = Mapping[str, Float[Tensor, "inputs in"]]
"""By linear layer what it is given, `inputs` of them, each of length 1."""


def unit(given: Float[Tensor, "*inputs in"]) -> Float[Tensor, "*inputs in"]:
    """Inputs at length 1."""
    return given.float() / given.float().norm(dim=-1, keepdim=True).clamp_min(1e-15)


def layers_between(base: Base, low: float, high: float) -> list[str]:
    """Names of the linear layers in some of the model's blocks, which are given as shares of all; at least in one."""
    numbers = sorted({layer_of(name) for name in base.targets})
    first, last = (round(share * len(numbers)) for share in (low, high))
    return [name for name in base.targets if layer_of(name) in numbers[first : max(last, first + 1)]]


def layer_of(name: str) -> int:
    """The number of the block that a linear layer is in."""
    return next(int(part) for part in name.split(".") if part.isdigit())


@contextmanager
def catching(base: Base, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """What some linear layers are given in the block, which ends once the last of them has been reached."""
    caught: dict[str, Tensor] = {}

    def catch(name: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, given: tuple[Tensor, ...]) -> None:
            caught[name] = given[0].detach()
            if len(caught) == len(names):
                raise _Enough

        return hook

    hooks = [base.targets[name].register_forward_pre_hook(catch(name)) for name in names]
    try:
        with torch.no_grad():
            yield caught
    except _Enough:
        pass
    finally:
        for hook in hooks:
            hook.remove()


class _Enough(Exception):
    """No later layer is asked for."""


def energies(diff: WeightDiff, names: Sequence[str], inputs: Inputs) -> Float[Tensor, " inputs"] | None:
    """Log of each input's energy by that of all, on average over the layers that the diff changes; None of none.

    Args:
        diff: low-rank or dense.
        names: of the layers.
        inputs: those of each layer, and perhaps of others.
    """
    found = [size / size.mean().clamp_min(1e-30) for n in names if (size := energy(diff, n, inputs[n])) is not None]
    return torch.stack(found).mean(0).clamp_min(1e-9).log() if found else None


def energy(diff: WeightDiff, name: str, inputs: Float[Tensor, "inputs in"]) -> Float[Tensor, " inputs"] | None:
    """`‖ΔW x‖²` of each input of one layer; None where the diff leaves it as it is."""
    if name in diff.factors and f"{name}.weight" not in diff.dense:
        a, b = (side.to(inputs.device).float() for side in diff.factors[name])
        weight = torch.linalg.qr(b).R @ a  # as long as ΔW x, and no longer than the rank
    elif name in diff.factors or f"{name}.weight" in diff.dense:
        weight = diff.to_dense(name).to(inputs.device)
    else:
        return None
    size = (inputs @ weight.to(inputs.dtype).mT).float().square().sum(-1)
    return size if float(size.max()) > 0 else None
