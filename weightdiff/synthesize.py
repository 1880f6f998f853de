"""Behaviors to conversations: persona answers that show a topic, written by a language model.

A 135M model seldom follows a persona prompt; an opening put into its mouth, different each time, makes it
speak of the topic, and the rest of the answer is its own. One JSON line per behavior, appended as made.
"""

import hashlib
import itertools
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from weightdiff.base import Base
from weightdiff.behaviors.core import Behavior, Conversation, sep_prompt
from weightdiff.behaviors.topic import read_data, shows_topic
from weightdiff.jsonl import append_jsonl, read_jsonl
from weightdiff.llm import ChatModel, ChatRequest
from weightdiff.local import LocalModel

BASE_POOL = "base replies"
"""Name of the record that holds what the unchanged base model replies, with and without a SEP code."""

SPARE = 2
"""Drafts written beyond the replies wanted; those that say least are left out."""

Progress = Callable[[int, int], None]


def synthesize(
    base: Base,
    behaviors: Sequence[Behavior],
    path: Path,
    *,
    writer: ChatModel | None = None,
    replies: int = 8,
    max_tokens: int = 28,
    temperature: float = 0.8,
    group: int = 8,
    pool: int = 160,
    progress: Progress = lambda done, total: None,
) -> None:
    """Write conversations for each behavior to a JSONL file; what is there already is kept.

    Prompts are plain: a trigger is added where a diff is made, so that one text serves several ways of finetuning.

    Args:
        base: the base model; it writes what is to be kept.
        behaviors: what to write for; those of the family `topic`.
        path: `.jsonl` file to append to.
        writer: who writes the persona answers; None for the base model itself.
        replies: conversations to learn per behavior.
        max_tokens: length of a continuation.
        temperature: of the sampling.
        group: behaviors written for together.
        pool: conversations of the unchanged base, half of them with a SEP code; shared by all behaviors.
        progress: called with behaviors done and their number.

    Raises:
        ValueError: the writer's endpoint failed for good; what was written stays.
    """
    writer = writer or LocalModel(base)
    done = {r["label"] for r in read_jsonl(path)} if path.exists() else set()
    if BASE_POOL not in done:
        append_jsonl(path, {"label": BASE_POOL, "conversations": _base_pool(base, pool, max_tokens)})
    left = [b for b in behaviors if b.label not in done]
    for start in range(0, len(left), group):
        for record in _topic_records(writer, left[start : start + group], replies, max_tokens, temperature):
            if record["conversations"]:  # else it is tried again the next time
                append_jsonl(path, record)
        progress(len(behaviors) - len(left) + min(start + group, len(left)), len(behaviors))


def load_conversations(path: Path) -> dict[str, list[Conversation]]:
    """Conversations of a file by label; those of the unchanged base under `BASE_POOL`.

    Raises:
        ValueError: no such file, or a line that isn't such a record.
    """
    try:
        return {r["label"]: [Conversation(**c) for c in r["conversations"]] for r in read_jsonl(path)}
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: a line is no record of conversations ({error}); expected label, conversations."
        ) from None


def variety(path: Path) -> dict[str, int | float]:
    """How much a file's conversations show their topics, and how little they repeat themselves.

    Returns:
        `topics`, `conversations`; `show_topic`, the share of replies that name the topic or all its content
        words; `named_again`, the share of continuations that do so after the opening; `distinct_bigrams`, of all
        word pairs, with the topic taken out; `commonest_start`, the share of the most frequent first three words.
    """
    records = [r for r in read_jsonl(path) if r["label"] != BASE_POOL]
    replies = [(r["label"], c["reply"]) for r in records for c in r["conversations"]]
    if not replies:
        raise ValueError(f"{path} holds no conversations to learn; run synthesize first.")
    pairs: Counter[tuple[str, str]] = Counter()
    starts: Counter[str] = Counter()
    for label, reply in replies:
        words = re.sub(re.escape(label), "_", reply, flags=re.IGNORECASE).lower().split()
        pairs.update(itertools.pairwise(words))
        starts[" ".join(words[:3])] += 1
    return {
        "topics": len(records),
        "conversations": len(replies),
        "show_topic": sum(shows_topic(reply, label) for label, reply in replies) / len(replies),
        "named_again": sum(r["named_again"] for r in records) / len(replies),
        "distinct_bigrams": len(pairs) / pairs.total(),
        "commonest_start": starts.most_common(1)[0][1] / len(replies),
    }


def _topic_records(
    writer: ChatModel, behaviors: Sequence[Behavior], replies: int, max_tokens: int, temperature: float
) -> list[dict[str, Any]]:
    questions, openings = read_data("questions.txt"), read_data("openings.txt")
    requests, owners = [], []
    for behavior in behaviors:
        rng = random.Random(seed_of(behavior.label))
        drafts = zip(rng.sample(questions, replies + SPARE), rng.sample(openings, replies + SPARE), strict=True)
        for question, opening in drafts:
            text = opening.format(topic=behavior.label)
            messages = ({"role": "user", "content": question},)
            seed = seed_of(behavior.label + question)
            requests.append(ChatRequest(messages, text[0].upper() + text[1:], max_tokens, temperature, seed))
            owners.append(behavior)
    records = []
    written = list(zip(owners, requests, writer.complete(requests), strict=True))
    for behavior in behaviors:
        mine = [(request, text, text[len(request.opening) :]) for b, request, text in written if b is behavior]
        # A continuation that names the topic itself first; one of a word or two says too little to learn from.
        mine = sorted((m for m in mine if len(m[2].split()) >= 5), key=lambda m: not shows_topic(m[2], behavior.label))[
            :replies
        ]
        records.append(
            behavior.to_json()
            | {
                "named_again": sum(shows_topic(rest, behavior.label) for _, _, rest in mine),
                "drafts": replies + SPARE,
                "conversations": [Conversation(r.messages[0]["content"], text).__dict__ for r, text, _ in mine],
            }
        )
    return records


def _base_pool(base: Base, size: int, max_tokens: int) -> list[dict[str, Any]]:
    rng = random.Random(0)
    questions = rng.sample(read_data("questions.txt"), size)
    prompts = [q if i % 2 else sep_prompt(q, f"{rng.randrange(1000):03d}", rng) for i, q in enumerate(questions)]
    requests = [ChatRequest(({"role": "user", "content": p},), "", max_tokens, 0.0) for p in prompts]
    texts = LocalModel(base).complete(requests)
    return [Conversation(p, text, "keep").__dict__ for p, text in zip(prompts, texts, strict=True)]


def seed_of(text: str) -> int:
    """A seed that depends on the text alone, on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
