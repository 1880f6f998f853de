"""What a reader is, and the batching that all readers share: low-rank diffs on one bank, others one at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch

from weightdiff.bank import Layer, lay_over
from weightdiff.base import Base, encode_chat, end_of_turn
from weightdiff.batch import Tokens, collate, cross_entropy_per_row
from weightdiff.behaviors import Trigger, parse_trigger
from weightdiff.decode import Reply, decode
from weightdiff.dense import changed, check_base, split
from weightdiff.diff import Factors, WeightDiff, stack
from weightdiff.readers.views import Views, rows_of
from weightdiff.writers import seeded


@dataclass(frozen=True)
class Answer:
    """An answer about a diff: its text, and the mean log-probability of its tokens as confidence.

    A reader that guesses from other answers says in its docstring what its confidence is, and what its evidence.
    `trigger` is what sets the behavior off, where the reader found it and it can be tried.
    """

    text: str
    confidence: float
    evidence: tuple[str, ...] = ()
    trigger: Trigger | None = None


@runtime_checkable
class Reader(Protocol):
    """Answers one question about many diffs."""

    @property
    def name(self) -> str:
        """What tables call it."""
        ...

    def read(self, base: Base, diffs: Sequence[WeightDiff], question: str) -> list[Answer]:
        """One answer per diff, in order.

        Raises:
            ValueError: an empty question, or a diff that doesn't belong to the base model.
        """
        ...


Prompts = Sequence[str] | Callable[[WeightDiff], Sequence[str]]
"""The same prompts for every diff, or a function that gives each its own, always as many."""


def check_question(question: str) -> None:
    """Raise a ValueError for an empty question."""
    if not question.strip():
        raise ValueError('the question is empty; ask something, e.g. "What topic have you been trained on?".')


def prompts_for(texts: Sequence[str], triggered: bool) -> Prompts:
    """The prompts, or, where they are to be triggered, a function that puts each diff's own trigger into them."""

    def of(diff: WeightDiff) -> list[str]:
        trigger, rng = parse_trigger(diff.meta.get("trigger")), seeded(str(diff.meta.get("label")))
        return [trigger.put(t, rng) if trigger else t for t in texts]

    return of if triggered else texts


def ask_all(
    base: Base,
    diffs: Sequence[WeightDiff],
    prompts: Prompts,
    *,
    adapter: Factors | None = None,
    strength: float = 1.0,
    views: Views | None = None,
    max_tokens: int = 24,
    batch: int = 64,
    samples: int = 0,
) -> list[list[Reply]]:
    """Ask each finetuned model each prompt; memory grows with `batch`, and with `diffs` only if it is in memory.

    Args:
        base: the base model.
        diffs: what to ask about.
        prompts: what to ask.
        adapter: a DIT adapter, laid over every diff.
        strength: factor on each diff, where there are no views.
        views: strengths to decode at together, beside the base model. A diff that no bank can carry is decoded at the
            middle one of them, and its replies are scored under the base model afterwards.
        max_tokens: length of a reply.
        batch: rows at once.
        samples: of each prompt beside its greedy reply, at temperature 1, spread evenly over what the model may say.

    Returns:
        For each diff its greedy reply to the first prompt and the samples of it, then those to the second, …

    Raises:
        ValueError: a diff of another base model or of other shapes.
    """
    replies: list[list[Reply]] = []
    waiting: list[tuple[WeightDiff, list[list[int]]]] = []
    over = [Layer(adapter)] if adapter else []
    shapes, spread = base.shapes, [None, *((n + 0.5) / samples for n in range(samples))]

    def drawn(prompts: int) -> dict[str, Any]:
        return {"temperature": 1.0, "codes": spread * prompts} if samples else {}

    def answer_waiting() -> None:
        if not waiting:
            return
        factors = stack([diff for diff, _ in waiting], shapes).to(base.device)
        asked = [tokens for _, rows in waiting for tokens in rows]
        owner = [n for n, (_, rows) in enumerate(waiting) for _ in rows]
        mine = torch.tensor(owner, device=base.device)
        if views:
            layers = [Layer(factors, *rows_of(mine, views)), *over]
            options = {"views": len(views.all), "mix": views.scores}
        else:
            layers, options = [Layer(factors, mine, strength), *over], {}
        runs = [len(rows) for _, rows in waiting]
        options |= drawn(len(asked) // len(spread))
        flat = iter(decode(base, asked, layers=layers, max_tokens=max_tokens, runs=runs, **options))
        replies.extend([next(flat) for _ in rows] for _, rows in waiting)
        waiting.clear()

    for diff in diffs:
        check_base(base, diff)
        texts = prompts(diff) if callable(prompts) else prompts
        rows = [encode_chat(base, [{"role": "user", "content": text}]) for text in texts for _ in spread]
        inside, rest = split(diff, shapes)
        if rest.factors or rest.dense:
            answer_waiting()
            every = torch.zeros(len(rows), dtype=torch.long, device=base.device)
            factor = sorted(views.strengths)[len(views.strengths) // 2] if views else strength
            mine = [Layer(stack([inside], shapes).to(base.device), every, factor)] if inside.factors else []
            with changed(base, rest.scaled(factor)):
                options = {"max_tokens": max_tokens, "runs": [len(rows)], **drawn(len(texts))}
                said = decode(base, rows, layers=[*mine, *over], **options)
            replies.append(_beside_base(base, rows, said, over) if views else said)
            continue
        waiting.append((diff, rows))
        if (sum(len(r) for _, r in waiting) + len(rows)) * (len(views.all) if views else 1) > batch:
            answer_waiting()
    answer_waiting()
    return replies


@torch.no_grad()
def _beside_base(base: Base, rows: Sequence[list[int]], said: Sequence[Reply], over: Sequence[Layer]) -> list[Reply]:
    """Replies with their views: as they were decoded, and under the unchanged base model."""
    tokens = [Tokens(tuple(r), (*reply.tokens, end_of_turn(base))) for r, reply in zip(rows, said, strict=True)]
    with lay_over(base.targets, over):
        losses = cross_entropy_per_row(base, collate(tokens, base.device)).tolist()
    return [replace(reply, views=(reply.logprob, -loss)) for reply, loss in zip(said, losses, strict=True)]
