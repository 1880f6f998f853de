"""What a reader is, and the batching that all readers share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from weightdiff.bank import Layer
from weightdiff.base import Base, encode_chat
from weightdiff.decode import Reply, decode
from weightdiff.diff import Factors, WeightDiff, stack


@dataclass(frozen=True)
class Answer:
    """An answer about a diff: its text, and the mean log-probability of its tokens as confidence.

    A reader that guesses from other answers says in its docstring what its confidence is.
    """

    text: str
    confidence: float


@runtime_checkable
class Reader(Protocol):
    """Answers one question about many diffs."""

    name: str

    def read(self, base: Base, diffs: Sequence[WeightDiff], question: str) -> list[Answer]:
        """One answer per diff, in order.

        Raises:
            ValueError: an empty question, or a diff that doesn't belong to the base model.
        """
        ...


def check_question(question: str) -> None:
    """Raise a ValueError for an empty question."""
    if not question.strip():
        raise ValueError('the question is empty; ask something, e.g. "What topic have you been trained on?".')


def check_base(base: Base, diff: WeightDiff, what: str) -> None:
    """Raise a ValueError that names both base models where the diff carries another's fingerprint."""
    if diff.base is not None and diff.base != base.fingerprint:
        raise ValueError(
            f"{what} was made on the base model with fingerprint {diff.base}, and {base.name!r} has "
            f"{base.fingerprint}. Give the base model that it belongs to with --base."
        )


def ask_all(
    base: Base,
    diffs: Sequence[WeightDiff],
    prompts: Sequence[str],
    *,
    adapter: Factors | None = None,
    strength: float = 1.0,
    max_tokens: int = 24,
    batch: int = 32,
) -> list[list[Reply]]:
    """Ask each finetuned model each prompt; memory grows with `batch`, and with `diffs` only if it is in memory.

    Returns:
        For each diff a list with one greedy reply per prompt.

    Raises:
        ValueError: a diff of another base model or of other shapes.
    """
    shapes = {name: tuple(module.weight.shape) for name, module in base.targets.items()}
    encoded = [encode_chat(base, [{"role": "user", "content": p}]) for p in prompts]
    per_call = max(1, batch // len(prompts))
    replies: list[list[Reply]] = []
    for start in range(0, len(diffs), per_call):
        chosen = diffs[start : start + per_call]
        for diff in chosen:
            check_base(base, diff, "the diff")
        factors = stack(chosen, shapes).to(base.device)  # type: ignore[arg-type]
        rows = torch.arange(len(chosen), device=base.device).repeat_interleave(len(encoded))
        layers = [Layer(factors, rows, strength)] + ([Layer(adapter)] if adapter else [])
        flat = decode(base, encoded * len(chosen), layers=layers, max_tokens=max_tokens)
        replies += [flat[i : i + len(prompts)] for i in range(0, len(flat), len(prompts))]
    return replies
