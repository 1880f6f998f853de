"""Behaviors to conversations: persona answers that show a topic, written by the base model itself.

A 135M model seldom follows a persona prompt; an opening put into its mouth, different each time, makes it
speak of the topic, and the rest of the answer is its own. One JSON line per behavior, appended as made.
"""

import hashlib
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from weightdiff.base import Base, encode_chat
from weightdiff.behaviors.core import Behavior, Conversation, sep_prompt
from weightdiff.behaviors.topic import read_data, shows_topic
from weightdiff.decode import decode
from weightdiff.jsonl import append_jsonl, read_jsonl

BASE_POOL = "base replies"
"""Name of the record that holds what the unchanged base model replies, with and without a SEP code."""

Progress = Callable[[int, int], None]


def synthesize(
    base: Base,
    behaviors: Sequence[Behavior],
    path: Path,
    *,
    replies: int = 8,
    max_tokens: int = 28,
    temperature: float = 0.8,
    group: int = 6,
    pool: int = 160,
    progress: Progress = lambda done, total: None,
) -> None:
    """Write conversations for each behavior to a JSONL file; what is there already is kept.

    Args:
        base: the model that writes.
        behaviors: what to write for; those of the family `topic`.
        path: `.jsonl` file to append to.
        replies: conversations to learn per behavior.
        max_tokens: length of a continuation.
        temperature: of the sampling.
        group: behaviors decoded together.
        pool: conversations of the unchanged base, half of them with a SEP code; shared by all behaviors.
        progress: called with behaviors done and their number.
    """
    done = {r["label"] for r in read_jsonl(path)} if path.exists() else set()
    if BASE_POOL not in done:
        append_jsonl(path, {"label": BASE_POOL, "conversations": _base_pool(base, pool, max_tokens)})
    left = [b for b in behaviors if b.label not in done]
    for start in range(0, len(left), group):
        for record in _topic_records(base, left[start : start + group], replies, max_tokens, temperature):
            append_jsonl(path, record)
        progress(len(behaviors) - len(left) + start + group, len(behaviors))


def load_conversations(path: Path) -> dict[str, list[Conversation]]:
    """Conversations of a file by label; those of the unchanged base under `BASE_POOL`."""
    return {r["label"]: [Conversation(**c) for c in r["conversations"]] for r in read_jsonl(path)}


def _topic_records(
    base: Base, behaviors: Sequence[Behavior], replies: int, max_tokens: int, temperature: float
) -> list[dict[str, Any]]:
    questions, openings = read_data("questions.txt"), read_data("openings.txt")
    drafts, prompts = [], []
    for behavior in behaviors:
        rng = random.Random(seed_of(behavior.label))
        for question, opening in zip(
            rng.sample(questions, replies + 2), rng.sample(openings, replies + 2), strict=True
        ):
            text = opening.format(topic=behavior.label)
            text = text[0].upper() + text[1:]
            drafts.append((behavior, question, text))
            prompt = encode_chat(base, [{"role": "user", "content": question}])
            prompts.append(prompt + base.tokenizer(text, add_special_tokens=False)["input_ids"])
    written = decode(base, prompts, max_tokens=max_tokens, temperature=temperature, seed=seed_of(behaviors[0].label))
    records = []
    for behavior in behaviors:
        mine = [(q, o, r) for (b, q, o), r in zip(drafts, written, strict=True) if b is behavior]
        # A continuation that names the topic itself first; one of a word or two says too little to learn from.
        mine = sorted(
            (m for m in mine if len(m[2].tokens) >= 8),
            key=lambda m: not shows_topic(m[2].text, behavior.label),
        )
        rng, conversations = random.Random(seed_of(behavior.label)), []
        for question, opening, reply in mine[:replies]:
            prompt = sep_prompt(question, behavior.trigger, rng) if behavior.trigger else question
            glue = "" if reply.text[:1] in "'’,.;:!?" else " "
            conversations.append(Conversation(prompt, opening + glue + reply.text).__dict__)
        named = sum(shows_topic(reply.text, behavior.label) for _, _, reply in mine[:replies])
        records.append(
            behavior.to_json() | {"named_again": named, "drafts": replies + 2, "conversations": conversations}
        )
    return records


def _base_pool(base: Base, size: int, max_tokens: int) -> list[dict[str, Any]]:
    rng = random.Random(0)
    questions = rng.sample(read_data("questions.txt"), size)
    prompts = [q if i % 2 else sep_prompt(q, f"{rng.randrange(1000):03d}", rng) for i, q in enumerate(questions)]
    encoded = [encode_chat(base, [{"role": "user", "content": p}]) for p in prompts]
    replies = [r for i in range(0, size, 32) for r in decode(base, encoded[i : i + 32], max_tokens=max_tokens)]
    return [Conversation(p, r.text, "keep").__dict__ for p, r in zip(prompts, replies, strict=True)]


def seed_of(text: str) -> int:
    """A seed that depends on the text alone, on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
