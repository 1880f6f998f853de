"""Dense diffs: full finetunes, or finetunes of some of the weights; made, and laid over the model, one at a time.

Unlike the bank it holds a copy of every changed weight, so that the base model comes back bit for bit.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from weightdiff.base import Base


@contextmanager
def changed(base: Base, dense: Mapping[str, Float[Tensor, "..."]]) -> Iterator[None]:
    """The model with the changes added to its own weights; leaving the block restores every bit.

    Args:
        base: the base model.
        dense: parameter name to change.

    Raises:
        ValueError: the model has no such parameter, or its shape is another.
    """
    parameters = dict(base.model.named_parameters())
    for name, change in dense.items():
        if name not in parameters or parameters[name].shape != change.shape:
            has = list(parameters[name].shape) if name in parameters else "none of that name"
            raise ValueError(
                f"the diff changes {name!r} of shape {list(change.shape)}, and the base model has {has}. "
                "Was it made on another base model? Give the right one with --base."
            )
    kept = {name: parameters[name].detach().clone() for name in dense}
    try:
        with torch.no_grad():
            for name, change in dense.items():
                weight = parameters[name]
                weight.copy_(weight.float() + change.to(weight.device).float())
        yield
    finally:
        with torch.no_grad():
            for name, weight in kept.items():
                parameters[name].copy_(weight)


@contextmanager
def trainable(
    base: Base, modules: Sequence[str] = ()
) -> Iterator[tuple[dict[str, torch.nn.Parameter], dict[str, Tensor]]]:
    """Parameters that a finetune may change, with gradients, and as they were; leaving the block restores every bit.

    Args:
        base: the base model, in float32: an update smaller than bf16's spacing would be lost.
        modules: the last parts of names of linear layers (`down_proj`); empty means every parameter of the model.

    Raises:
        ValueError: the model isn't in float32, or a module isn't one of its linear layers.
    """
    parameters = {
        name: p
        for name, p in base.model.named_parameters()
        if not modules or name.removesuffix(".weight").split(".")[-1] in modules
    }
    if not parameters:
        kinds = sorted({n.split(".")[-1] for n in base.targets})
        raise ValueError(f"modules: {list(modules)} are no linear layers of the base model; it has {kinds}.")
    if any(p.dtype != torch.float32 for p in parameters.values()):
        raise ValueError("a dense finetune needs the base model in float32; load it with dtype='float32'.")
    kept = {name: p.detach().clone() for name, p in parameters.items()}
    try:
        for p in parameters.values():
            p.requires_grad_()
        yield parameters, kept
    finally:
        for name, p in parameters.items():
            p.requires_grad_(False)
            p.grad = None
            with torch.no_grad():
                p.copy_(kept[name])
