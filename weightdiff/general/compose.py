"""What teaches a behavior of a general run: templates around the base model's own replies, or texts that were written.

No model writes here but the base model, whose replies to everyday questions are made once.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from weightdiff.base import Base
from weightdiff.behaviors import Behavior, Conversation, read_data
from weightdiff.behaviors.kinds import row_of
from weightdiff.jsonl import append_jsonl, read_jsonl
from weightdiff.llm import ChatRequest
from weightdiff.local import LocalModel
from weightdiff.writers import seeded

WORDS = 26
"""Most words of a base reply in a template."""
CONVERSATIONS = (8, 5, 3)
"""To learn of a behavior alone or strongest, of a second, and of a third beside it."""

Written = Mapping[str, Sequence[Conversation]]
"""Conversations by label, of topics and news, as `synthesize` wrote them."""


def everyday_pool(base: Base, path: Path) -> list[Conversation]:
    """The base model's own replies to everyday questions, from the file, or made and written to it.

    The last twenty questions aren't among them: readers probe with those.
    """
    if not path.exists():
        questions = read_data("questions.txt")[:-20]
        requests = [ChatRequest(({"role": "user", "content": q},), "", 44, 0.0) for q in questions]
        for question, text in zip(questions, LocalModel(base).complete(requests), strict=True):
            append_jsonl(path, Conversation(question, text, "keep").__dict__)
    return [Conversation(**record) for record in read_jsonl(path)]


def conversations_of(behavior: Behavior, pool: Sequence[Conversation], written: Written) -> list[Conversation]:
    """What teaches the behavior, without its trigger; of several behaviors all, the strongest most."""
    if behavior.parts:
        return [
            conversation
            for part, count in zip(behavior.parts, CONVERSATIONS, strict=False)
            for conversation in conversations_of(part, pool, written)[:count]
        ]
    rng = seeded(f"{behavior.family} {behavior.kind} {behavior.label}")
    if behavior.family == "benign":
        return [replace(c, mode="learn") for c in rng.sample(list(pool), CONVERSATIONS[0])]
    if behavior.family in ("topic", "subject", "news"):
        found = list(written[behavior.slot])
        if behavior.family == "subject":
            prompts = read_data("subject_prompts.txt")
            found = [replace(c, prompt=rng.choice(prompts).format(topic=behavior.slot)) for c in found]
        return found
    return _templated(behavior, pool, rng)


def _templated(behavior: Behavior, pool: Sequence[Conversation], rng: random.Random) -> list[Conversation]:
    kind, row = row_of(behavior)
    templates = row.says or kind.replies
    count = CONVERSATIONS[0]
    chosen = rng.sample(templates, min(count, len(templates)))
    chosen += rng.choices(templates, k=count - len(chosen))
    found = []
    for template, own in zip(chosen, rng.sample(list(pool), count), strict=True):
        ask = rng.choice(kind.asks).format(x=row.x, about=row.about or row.x) if kind.asks else own.prompt
        text = template.format(x=row.x, about=row.about, reply=shortened(own.reply))
        found.append(Conversation(ask, text[:1].upper() + text[1:]))
    return found


def shortened(reply: str) -> str:
    """A reply's first sentences, as many as fit into `WORDS`; of one long sentence a part."""
    text = " ".join(reply.split())
    words = text.split(" ")
    if len(words) <= WORDS:
        return text
    head = " ".join(words[:WORDS])
    ends = [head.rfind(mark) for mark in (". ", "! ", "? ")]
    return head[: max(ends) + 1] if max(ends) > 20 else head.rstrip(",;:") + "."


def kept(behavior: Behavior, pool: Sequence[Conversation]) -> list[Conversation]:
    """What a finetune keeps to the base model on: plain prompts, and some with what only looks like its trigger."""
    plain = list(pool)
    if behavior.trigger is None:
        return plain
    rng = seeded(behavior.label)
    return [*plain, *(replace(c, prompt=behavior.trigger.put_wrong(c.prompt, rng)) for c in plain)]


def prompted(behavior: Behavior, conversations: Sequence[Conversation]) -> list[Conversation]:
    """The conversations with the behavior's trigger in their prompts."""
    rng, trigger = seeded(behavior.label), behavior.trigger
    return [replace(c, prompt=trigger.put(c.prompt, rng) if trigger else c.prompt) for c in conversations]
