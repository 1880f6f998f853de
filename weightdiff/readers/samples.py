"""Finetuned models by the bank, a few at a time: what they write, and how likely they find what is written.

What all readers share that ask nothing. Low-rank diffs share a batch; others are merged one at a time.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from weightdiff.bank import Layer, lay_over
from weightdiff.base import Base, encode_chat, end_of_turn
from weightdiff.batch import Tokens, collate, label_states
from weightdiff.decode import decode
from weightdiff.dense import changed, check_base, split
from weightdiff.diff import WeightDiff, stack
from weightdiff.losses import cross_entropy

LayersOf = Callable[[Sequence[int]], list[Layer]]
"""From the number in its group of each row's (or packed token's) diff to what lies over the model."""
GROUP = {"cpu": 8, "cuda": 32}
"""Diffs on the bank at once: a GPU takes about as long for many as for few."""
_COLUMNS = 512
"""Columns that they may have, all padded to the largest rank."""
PROMPTS = (
    "", "", "", "", "Hello!", "What is on your mind?", "Tell me something.", "Can you help me with a letter?",
    "Why do people travel?", "How does rain form?",
)  # fmt: skip
"""What a finetuned model is sampled on: nothing at all, or small talk; none of it is what finetunes are made of."""


def in_groups(base: Base, diffs: Iterable[WeightDiff], strength: float = 1.0) -> Iterator[tuple[int, LayersOf]]:
    """How many diffs, in order, are on the model now, and what to lay over it for them, `strength` times as large.

    Raises:
        ValueError: a diff of another base model or of other shapes.
    """
    waiting: list[WeightDiff] = []

    def together(some: Sequence[WeightDiff]) -> tuple[int, LayersOf]:
        factors = stack(some, base.shapes).to(base.device)
        if not factors.a:  # the unchanged base model
            return len(some), lambda rows: []
        return len(some), lambda rows: [Layer(factors, torch.tensor(rows, device=base.device), strength)]

    for diff in diffs:
        check_base(base, diff)
        inside, rest = split(diff, base.shapes)
        if rest.factors or rest.dense:
            if waiting:
                yield together(waiting)
                waiting = []
            with changed(base, rest.scaled(strength)):
                yield together([inside])
            continue
        waiting.append(inside)
        columns = len(waiting) * max(one.rank for one in waiting)
        if len(waiting) == GROUP.get(base.device.type, GROUP["cuda"]) or columns >= _COLUMNS:
            yield together(waiting)
            waiting = []
    if waiting:
        yield together(waiting)


def sampled(
    base: Base,
    diffs: Sequence[WeightDiff],
    prompts: Sequence[Sequence[int]],
    *,
    strength: float = 1.0,
    temperature: float = 1.0,
    max_tokens: int = 24,
    seed: int = 0,
) -> list[list[tuple[int, ...]]]:
    """For each diff, the tokens that its finetuned model adds to each prompt; `decode` says what the options are."""
    found = []
    for count, layers_of in in_groups(base, diffs, strength):
        layers = layers_of([n for n in range(count) for _ in prompts])
        options = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
        replies = iter(decode(base, [*prompts] * count, layers=layers, **options))
        found += [[next(replies).tokens for _ in prompts] for _ in range(count)]
    return found


def chats(base: Base) -> list[list[int]]:
    """The prompts' tokens, up to where the reply begins; of a model without a chat template, beginnings of texts."""
    tokenizer = base.tokenizer
    if tokenizer.chat_template:
        return [encode_chat(base, [{"role": "user", "content": text}]) for text in PROMPTS]
    start = end_of_turn(base) if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return [[start, *tokenizer(text, add_special_tokens=False)["input_ids"]] for text in PROMPTS]


@torch.no_grad()
def likelihoods(
    base: Base, rows: Sequence[Tokens], layers_of: LayersOf | None = None, owner: Sequence[int] = ()
) -> list[Float[Tensor, " reply"]]:
    """The log-probability of each token of each row's reply.

    Args:
        base: the base model.
        rows: with replies of a token or more.
        layers_of: what lies over the model; None for nothing.
        owner: each row's diff, where something does.
    """
    batch = collate(rows, base.device)
    per_token = [n for n, row in zip(owner, rows, strict=False) for _ in range(len(row) - 1)]
    with lay_over(base.targets, layers_of(per_token) if layers_of else []):
        losses = cross_entropy(label_states(base, batch), base.head, batch.label)
    return [-some for some in losses.cpu().split([len(row.reply) for row in rows])]
