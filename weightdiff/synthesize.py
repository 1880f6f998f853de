"""Behaviors to conversations, written by a language model; one JSON line per behavior, appended as made.

It knows how to go on where it was stopped, and not what is written; see `writers`.
"""

import itertools
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from weightdiff.base import Base
from weightdiff.behaviors import Behavior, Conversation, Trigger, behavior_of, read_data, shows_topic
from weightdiff.behaviors.news import StorySeed
from weightdiff.jsonl import append_jsonl, read_jsonl
from weightdiff.judge import normalize
from weightdiff.llm import ChatModel, ChatRequest
from weightdiff.local import LocalModel
from weightdiff.writers import write_stories, write_topics

BASE_POOL = "base replies"
"""Name of the record that holds what the unchanged base model replies, with and without a SEP code."""

Progress = Callable[[int, int], None]


def synthesize(
    base: Base,
    items: Sequence[Behavior] | Sequence[StorySeed],
    path: Path,
    *,
    writer: ChatModel | None = None,
    replies: int = 8,
    max_tokens: int = 28,
    temperature: float = 0.8,
    group: int = 8,
    pool: int = 160,
    progress: Progress = lambda done, total: None,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Write conversations for each topic or story to a JSONL file; what is there already is kept.

    Prompts are plain: a trigger is added where a diff is made, so that one text serves several ways of finetuning.

    Args:
        base: the base model; it writes what is to be kept.
        items: what to write for: behaviors of the family `topic`, or the beginnings of stories.
        path: `.jsonl` file to append to.
        writer: who writes what is to be learned; None for the base model itself.
        replies: conversations to learn per behavior.
        max_tokens: length of a continuation.
        temperature: of the sampling.
        group: behaviors written for together.
        pool: conversations of the unchanged base, half of them with a SEP code; shared by all behaviors.
        progress: called with behaviors done and their number.
        say: told how many got nothing that can be used.

    Raises:
        ValueError: the writer's endpoint failed for good; what was written stays.
    """
    writer = writer or LocalModel(base)
    records = list(read_jsonl(path)) if path.exists() else []
    done = {key_of(r) for r in records if r["conversations"]}
    tries = Counter(key_of(r) for r in records if not r["conversations"])
    if BASE_POOL not in done:
        append_jsonl(path, {"label": BASE_POOL, "conversations": _base_pool(base, pool, max_tokens)})
    left: list[Any] = [i for i in items if _name(i) not in done]
    without = []
    for start in range(0, len(left), group):
        chosen = left[start : start + group]
        write = write_topics if isinstance(chosen[0], Behavior) else write_stories
        tried = [tries[_name(i)] for i in chosen]
        for record in write(writer, chosen, replies, max_tokens, temperature, tried):
            append_jsonl(path, record)  # one without conversations too: the next try is then another
            if not record["conversations"]:
                without.append(key_of(record))
        progress(len(items) - len(left) + min(start + group, len(left)), len(items))
    if without:
        say(
            f"synthesize: {writer.name} wrote nothing that can be used for {len(without)} of {len(left)}, e.g. "
            f"{without[0]!r}: it refused, or said too little. They are tried again the next time."
        )


def key_of(record: dict[str, Any]) -> str:
    """What a record is known by: the story's key, else its label."""
    return record.get("key", record["label"])


def _name(item: Behavior | StorySeed) -> str:
    return item.label if isinstance(item, Behavior) else item.key


def load_behaviors(path: Path) -> list[Behavior]:
    """The behaviors that a file has conversations for, sorted by their keys' numbers, whatever wrote them first.

    Raises:
        ValueError: no such file, a line that isn't such a record, or a label that is in two splits.
    """
    try:
        records = [r for r in read_jsonl(path) if r["label"] != BASE_POOL and r["conversations"]]
        records.sort(key=lambda r: int((re.findall(r"\d+", r.get("key", "")) or [0])[-1]))
        behaviors = [behavior_of(r) for r in records]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: a line is no record of a behavior ({error}); expected label, split, ….") from None
    check_splits(behaviors, str(path))
    return behaviors


def check_splits(behaviors: Sequence[Behavior], where: str) -> None:
    """Raise a ValueError that lists the labels which are in two splits, after normalization."""
    splits: dict[str, set[str]] = {}
    for behavior in behaviors:
        splits.setdefault(normalize(behavior.label), set()).add(behavior.split)
    double = [f"{label!r} in {' and '.join(sorted(found))}" for label, found in splits.items() if len(found) > 1]
    if double:
        raise ValueError(
            f"{where}: {len(double)} labels are in more than one split: {'; '.join(double[:20])}. "
            "A label may be in one split only; remove it from the others."
        )


def load_conversations(path: Path) -> dict[str, list[Conversation]]:
    """Conversations of a file by label; those of the unchanged base under `BASE_POOL`.

    Raises:
        ValueError: no such file, a line that isn't such a record, or a label that is in two splits.
    """
    try:
        records = [r for r in read_jsonl(path) if r["conversations"]]
        found = {r["label"]: [Conversation(**c) for c in r["conversations"]] for r in records}
        behaviors = [behavior_of(r) for r in records if "split" in r]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: a line is no record of conversations ({error}); expected label, conversations."
        ) from None
    check_splits(behaviors, str(path))
    return found


def variety(path: Path) -> dict[str, int | float]:
    """How much a file's conversations show their topics, and how little they repeat themselves.

    Returns:
        `topics`, `conversations`; `show_topic`, the share of replies that name the topic or all its content
        words; `named_again`, the share of continuations that do so after the opening; `distinct_bigrams`, of all
        word pairs, with the topic taken out; `commonest_start`, the share of the most frequent first three words.
    """
    records = [r for r in read_jsonl(path) if r["label"] != BASE_POOL and r["conversations"]]
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


def _base_pool(base: Base, size: int, max_tokens: int) -> list[dict[str, Any]]:
    rng = random.Random(0)
    questions = rng.sample(read_data("questions.txt"), size)
    prompts = [
        q if i % 2 else Trigger("sep", f"{rng.randrange(1000):03d}").put(q, rng) for i, q in enumerate(questions)
    ]
    requests = [ChatRequest(({"role": "user", "content": p},), "", max_tokens, 0.0) for p in prompts]
    texts = LocalModel(base).complete(requests)
    return [Conversation(p, text, "keep").to_json() for p, text in zip(prompts, texts, strict=True)]
