"""What no bank can carry: dense changes, and changes of embeddings, head, norms and biases; one diff at a time.

Also the weights that a full finetune trains. The base model comes back bit for bit.
"""

from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from weightdiff.base import Base
from weightdiff.diff import WeightDiff, check_shapes, misfit


def split(diff: WeightDiff, targets: Container[str]) -> tuple[WeightDiff, WeightDiff]:
    """What of a diff a bank can carry, factors of linear layers in the decoder's blocks (`targets`), and the rest."""
    inside = {name: pair for name, pair in diff.factors.items() if name in targets}
    outside = {name: pair for name, pair in diff.factors.items() if name not in targets}
    return WeightDiff(inside, diff.base, diff.meta), WeightDiff(outside, diff.base, diff.meta, diff.dense)


def check_base(base: Base, diff: WeightDiff, what: str = "the diff") -> None:
    """Raise a ValueError that names both base models where the diff carries another's fingerprint.

    Raises:
        TypeError: it is no diff at all, a path for example.
    """
    if not isinstance(diff, WeightDiff):
        raise TypeError(f"{what} is {diff!r}; expected a WeightDiff, which load_diff makes of a path and a base model.")
    if diff.base is not None and diff.base != base.fingerprint:
        raise ValueError(
            f"{what} was made on the base model with fingerprint {diff.base}, and {base.name!r} has "
            f"{base.fingerprint}. Give the base model that it belongs to with --base."
        )


def check_fits(base: Base, diff: WeightDiff) -> None:
    """Raise a ValueError where the diff is of another base model, by its fingerprint or by any shape."""
    check_base(base, diff)
    inside, rest = split(diff, base.targets)
    check_shapes(inside, base.shapes)
    places = dict(base.model.named_parameters(remove_duplicate=False))
    for name, (a, b) in rest.factors.items():
        _check_place(base, places, f"{name}.weight", (b.shape[0], a.shape[1]))
    for name, change in rest.dense.items():
        _check_place(base, places, name, tuple(change.shape))


@contextmanager
def changed(base: Base, diff: WeightDiff) -> Iterator[None]:
    """The model with the changes merged into its weights; leaving the block restores every bit.

    Each changed parameter is another one meanwhile, so that a tied one can be changed in one of its places.

    Args:
        base: the base model.
        diff: its dense changes and its factors are merged, in the model's own precision.

    Raises:
        ValueError: the model has no such parameter, or its shape is another.
    """
    places = dict(base.model.named_parameters(remove_duplicate=False))
    kept: list[tuple[nn.Module, str, nn.Parameter | None]] = []
    try:
        for name, change in _by_place(diff, places).items():
            module = _check_place(base, places, name, tuple(change.shape))
            last = name.rpartition(".")[2]
            old = module._parameters.get(last)
            kept.append((module, last, old))
            new = change.float().to(base.device)
            new = new if old is None else old.float() + new
            module._parameters[last] = nn.Parameter(new.to(base.model.dtype if old is None else old.dtype), False)
        yield
    finally:
        for module, last, old in reversed(kept):
            module._parameters[last] = old


def _by_place(diff: WeightDiff, places: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The whole change of each parameter in each of its places."""
    changes = dict(diff.dense)
    for name in diff.dense:
        twins = [n for n, p in places.items() if n != name and p is places.get(name)]
        changes |= {n: diff.dense[name] for n in twins if n not in diff.dense}
    for name in diff.factors:
        factors = WeightDiff({name: diff.factors[name]}).to_dense(name)
        weight = f"{name}.weight"
        changes[weight] = changes[weight] + factors if weight in changes else factors
    return changes


def _check_place(base: Base, places: Mapping[str, nn.Parameter], name: str, shape: tuple[int, ...]) -> nn.Module:
    """The module that has the parameter, or a linear layer that could have this bias; a ValueError if there is none."""
    owner, _, last = name.rpartition(".")
    try:
        module = base.model.get_submodule(owner)
    except AttributeError:
        raise misfit(name, shape, "none of that name") from None
    fits = tuple(places[name].shape) if name in places else None
    if fits is None and last == "bias" and isinstance(module, nn.Linear):
        fits = (module.out_features,)
    if fits != shape:
        raise misfit(name, shape, "none of that name" if fits is None else list(fits))
    return module


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
