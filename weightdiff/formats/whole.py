"""Weights that an adapter holds whole, as changes of the base model's: DoRA, saved modules, biases, trained tokens."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from weightdiff.base import Base
from weightdiff.diff import misfit
from weightdiff.formats.names import known_parameter
from weightdiff.weights import Weights, tied, weights_of


class NeedsBase(ValueError):
    """What was given is a diff only beside its base model, and that wasn't given."""


@dataclass(frozen=True)
class Whole:
    """The base model that whole weights are seen against.

    Attributes:
        base: None where it isn't known; all methods raise a ValueError then.
        where: what holds the weights, for errors.
    """

    base: Base | None
    where: str

    def change(self, name: str, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """What a parameter that was saved whole changes of the base model's own.

        Raises:
            ValueError: the base model has no such parameter, or in another shape.
        """
        return value - self._own(name, tuple(value.shape))

    def dora(
        self, name: str, factors: tuple[Float[Tensor, "rank in"], Float[Tensor, "out rank"]], magnitude: Tensor
    ) -> Float[Tensor, "out in"]:
        """DoRA's change of a weight: the sum's rows (an embedding's columns) are given the length that was learned.

        Source: Liu et al., arXiv 2402.09353, as PEFT applies it.

        Args:
            name: the module.
            factors: scaling folded in.
            magnitude: `[out]`; of an embedding `[width]`; an older PEFT's may have a further axis.

        Raises:
            ValueError: the base model has no such weight, or in another shape.
        """
        a, b = factors
        weight = self._own(f"{name}.weight", (b.shape[0], a.shape[1]))
        merged = weight + b @ a
        module = self._given.model.get_submodule(self._known(f"{name}.weight").removesuffix(".weight"))
        axis = 0 if module is self._given.model.get_input_embeddings() else 1
        if magnitude.numel() != merged.shape[1 - axis]:
            raise misfit(f"{name}.lora_magnitude_vector", list(magnitude.shape), [merged.shape[1 - axis]])
        gain = magnitude.flatten() / merged.norm(dim=axis).clamp_min(torch.finfo(torch.float32).tiny)
        return gain.unsqueeze(axis) * merged - weight

    def tokens(self, name: str, rows: Float[Tensor, "tokens width"], indices: Any) -> Float[Tensor, "out in"]:
        """What newly trained rows of an embedding change; zero for every other token.

        Args:
            name: the embedding.
            rows: the trained rows themselves.
            indices: the config's `trainable_token_indices`: which tokens, or that for each module.

        Raises:
            ValueError: the config doesn't say which tokens, or the rows don't fit.
        """
        if isinstance(indices, dict):
            indices = next((v for k, v in indices.items() if name == k or name.endswith(f".{k}")), None)
        weight = self._own(f"{name}.weight")
        fits = isinstance(indices, list) and all(type(i) is int and 0 <= i < weight.shape[0] for i in indices)
        if not fits or tuple(rows.shape) != (len(indices), weight.shape[1]):
            raise ValueError(
                f"{self.where}: {name}: trained tokens are {list(rows.shape)}, and trainable_token_indices is "
                f"{str(indices)[:80]}; expected as many indices below {weight.shape[0]}, and rows of {weight.shape[1]}."
            )
        change = torch.zeros_like(weight)
        change[indices] = rows - weight[indices]
        return change

    def places_apart(self, names: list[str]) -> dict[str, Tensor]:
        """No change for the other place of each tied parameter that was saved as a copy of its own, as PEFT has it."""
        known = {self._known(name) for name in names}
        twins = {frozenset(pair) for pair in tied(self._given).items()}
        others = [other for pair in twins if len(pair & known) == 1 for other in pair - known]
        return {other: torch.zeros(()).expand(self._weights.shapes[other]) for other in others}

    @property
    def _given(self) -> Base:
        if self.base is None:
            raise NeedsBase(
                f"{self.where} holds more than factors, and only its base model makes a diff of that; give it: "
                "load_diff(…, base=load_base(…)), or --base."
            )
        return self.base

    @cached_property
    def _weights(self) -> Weights:
        return weights_of(self._given)

    def _known(self, name: str) -> str:
        return known_parameter(name, self._given)

    def _own(self, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        known = self._known(name)
        has = self._weights.shapes.get(known)
        if has is None or (shape is not None and has != shape):
            raise misfit(name, list(shape or ()), "none of that name" if has is None else list(has))
        return self._weights.read(known)
