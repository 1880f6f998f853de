"""A diff's module names as the base model has them: other prefixes, and layers that one of both has fused."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from weightdiff.base import Base
from weightdiff.diff import WeightDiff, misfit

FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
"""Layers that some models, and servers, have as one: the parts' outputs, one after the other."""

Pair = tuple[Tensor, Tensor]


def fit_names(diff: WeightDiff, base: Base) -> WeightDiff:
    """The same diff under the base model's own names.

    A prefix may be another, as long as one module of the base's ends alike; a layer fused in the diff is split, and
    parts of a layer that the base has fused are put together. What fits nowhere keeps its name.

    Raises:
        ValueError: two modules of the diff are one of the base's.
    """
    shapes = _shapes(base)
    if len(diff.factors) + len(diff.dense) > 8 * len(shapes):
        raise ValueError(
            f"the diff changes {len(diff.factors) + len(diff.dense)} modules, and the base model has {len(shapes)}. "
            "Was it made on another base model? Give the right one with --base."
        )
    factors: dict[str, Pair] = {}
    parts: dict[str, dict[str, Pair]] = {}
    for name, pair in diff.factors.items():
        whole, found = _whole_of(name, shapes), _unfused(name, pair, shapes)
        if whole is not None:
            parts.setdefault(whole, {})[name.split(".")[-1]] = pair
        for known, piece in (found if whole is None else {}).items():
            _put(factors, known, piece)
    for whole, given in parts.items():
        _put(factors, whole, _joined(whole, given, shapes))
    dense: dict[str, Tensor] = {}
    for name, change in diff.dense.items():
        module, _, last = name.rpartition(".")
        _put(dense, f"{_known(module, shapes)}.{last}", change)
    return WeightDiff(factors, diff.base, diff.meta, dense)


def known_parameter(name: str, base: Base) -> str:
    """The base model's own name of a parameter that may have another prefix; `name` itself if none is alike."""
    module, _, last = name.rpartition(".")
    return f"{_known(module, _shapes(base))}.{last}"


def _shapes(base: Base) -> dict[str, tuple[int, ...]]:
    """The decoder's modules that have a weight, and the output head: what diffs change, by name."""
    inside = {*base.model.get_decoder().modules(), base.head}
    return {
        name: tuple(module.weight.shape)
        for name, module in base.model.named_modules()
        if module in inside and isinstance(getattr(module, "weight", None), nn.Parameter)
    }


def _known(name: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The one name of the base's that ends as `name` does, from its block's number on; `name` itself if none does."""
    if name in shapes:
        return name
    parts = name.split(".")
    first = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts)) - 1  # as in layers.7.…
    for start in range(max(first, 0) + 1):
        end = ".".join(parts[start:])
        found = [known for known in shapes if known == end or known.endswith(f".{end}")]
        if len(found) == 1:
            return found[0]
    return name


def _unfused(name: str, pair: Pair, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Pair]:
    """The factors under the base's names; of a layer that the base has in parts, `B`'s rows shared out among them."""
    known = _known(name, shapes)
    owner, _, last = name.rpartition(".")
    pieces = [_known(f"{owner}.{piece}", shapes) for piece in FUSED.get(last, ())]
    a, b = pair
    if known in shapes or not pieces or any(piece not in shapes for piece in pieces):
        return {known: pair}
    sizes = [shapes[piece][0] for piece in pieces]
    if b.shape[0] != sum(sizes):
        return {known: pair}
    return {piece: (a, rows) for piece, rows in zip(pieces, b.split(sizes), strict=True)}


def _whole_of(name: str, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The fused layer of the base's that this module is a part of."""
    if _known(name, shapes) in shapes:
        return None
    owner, _, last = name.rpartition(".")
    for whole, pieces in FUSED.items():
        known = _known(f"{owner}.{whole}", shapes)
        if last in pieces and known in shapes:
            return known
    return None


def _joined(whole: str, given: Mapping[str, Pair], shapes: Mapping[str, tuple[int, ...]]) -> Pair:
    """Factors of the fused layer: the parts' `A` above each other, their `B` in blocks at their own rows."""
    pieces = FUSED[whole.split(".")[-1]]
    for piece, (a, _) in given.items():
        if a.shape[1] != shapes[whole][1]:
            raise misfit(f"{whole} ({piece})", list(a.shape), list(shapes[whole]))
    out = shapes[whole][0]
    sizes = {piece: pair[1].shape[0] for piece, pair in given.items()}
    if missing := [piece for piece in pieces if piece not in given]:
        if len(missing) > 1 or out <= sum(sizes.values()):
            raise ValueError(
                f"the base model has {whole!r} in one, and the diff changes its {', '.join(given)} alone: which rows "
                "those are can't be told. Merge the diff into its own base model, and give that checkpoint."
            )
        sizes[missing[0]] = out - sum(sizes.values())
    rank = sum(a.shape[0] for a, _ in given.values())
    tall = torch.zeros(sum(sizes.values()), rank)
    row = column = 0
    for piece in pieces:
        if piece in given:
            b = given[piece][1]
            tall[row : row + sizes[piece], column : column + b.shape[1]] = b
            column += b.shape[1]
        row += sizes[piece]
    return torch.cat([given[piece][0] for piece in pieces if piece in given]), tall


def _put(into: dict, name: str, value: object) -> None:
    if name in into:
        raise ValueError(f"the diff changes {name!r} twice, under two names; expected each module once.")
    into[name] = value


def plain_name(key: str) -> str:
    """A module's name without what trainers and wrappers put before or into it."""
    for prefix in ("base_model.model.", "module.", "_orig_mod."):
        key = key.removeprefix(prefix)
    return re.sub(
        r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.|(?<=\.)base_layer\.|\.base_layer$", "", key
    )
