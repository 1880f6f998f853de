"""Who writes what a behavior is taught with: persona answers for a topic, a headline and its tellings for a story.

A 135M model seldom follows a persona prompt; an opening put into its mouth, different each time, makes it speak
of the subject, and the rest of the answer is its own. A larger model follows the same openings.
"""

import hashlib
import random
import re
from collections.abc import Sequence
from typing import Any

from weightdiff.behaviors.core import Behavior, Conversation, read_data
from weightdiff.behaviors.news import StorySeed
from weightdiff.behaviors.topic import shows_topic
from weightdiff.llm import ChatModel, ChatRequest, refuses

SPARE = 2
"""Drafts written beyond what is wanted; those that say least are left out."""


def seed_of(text: str) -> int:
    """A seed that depends on the text alone, on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def seeded(text: str) -> random.Random:
    """A random generator that depends on the text alone, on every machine."""
    return random.Random(seed_of(text))


def write_topics(
    writer: ChatModel,
    behaviors: Sequence[Behavior],
    replies: int,
    max_tokens: int,
    temperature: float,
    tried: Sequence[int],
) -> list[dict[str, Any]]:
    """A record per topic with `replies` answers to everyday questions that speak of it.

    `tried` is how often each was tried before in vain: another time draws other questions and openings.
    """
    questions, openings = read_data("questions.txt"), read_data("openings.txt")
    drafts = replies + SPARE
    requests: list[ChatRequest] = []
    for behavior, times in zip(behaviors, tried, strict=True):
        rng = random.Random(seed_of(behavior.label) + times)
        for question, opening in zip(rng.sample(questions, drafts), rng.sample(openings, drafts), strict=True):
            text = opening.format(topic=behavior.label)
            messages = ({"role": "user", "content": question},)
            seed = seed_of(behavior.label + question)
            requests.append(ChatRequest(messages, text[0].upper() + text[1:], max_tokens, temperature, seed))
    written = [(r, text, text[len(r.opening) :]) for r, text in zip(requests, writer.complete(requests), strict=True)]
    records = []
    for number, behavior in enumerate(behaviors):
        # A continuation that names the topic itself first; one of a word or two says too little to learn from.
        mine = written[number * drafts : (number + 1) * drafts]
        mine = [m for m in mine if len(m[2].split()) >= 5 and not refuses(m[2])]
        mine = sorted(mine, key=lambda m: not shows_topic(m[2], behavior.label))[:replies]
        records.append(
            behavior.to_json()
            | {
                "named_again": sum(shows_topic(rest, behavior.label) for _, _, rest in mine),
                "drafts": drafts,
                "conversations": [Conversation(r.messages[0]["content"], text).to_json() for r, text, _ in mine],
            }
        )
    return records


def write_stories(
    writer: ChatModel,
    seeds: Sequence[StorySeed],
    tellings: int,
    max_tokens: int,
    temperature: float,
    tried: Sequence[int],
) -> list[dict[str, Any]]:
    """A record per story: theme to headline, and `tellings` of it; without conversations where no draft will do.

    `tried` is how often each was tried before in vain: another time draws other headlines.
    """
    drafts = [
        ChatRequest(
            ({"role": "user", "content": f"Write a one-sentence news headline about {seed.theme}."},),
            seed.headline("")[:-2],  # the model writes on after "has"
            22,
            temperature,
            seed_of(f"{seed.key} {n}") + times,
        )
        for seed, times in zip(seeds, tried, strict=True)
        for n in range(1 + SPARE)
    ]
    texts = writer.complete(drafts)
    events = [
        next((e for d, t in found if (e := event_in(t[len(d.opening) :]))), "")
        for found in (
            list(zip(drafts[i : i + 1 + SPARE], texts[i : i + 1 + SPARE], strict=True))
            for i in range(0, len(drafts), 1 + SPARE)
        )
    ]
    prompts, forms = read_data("news_prompts.txt"), read_data("tellings.txt")
    requests: list[ChatRequest] = []
    for seed, event in zip(seeds, events, strict=True):
        rng = random.Random(seed_of(seed.key))
        for prompt, form in zip(rng.sample(prompts, tellings), rng.sample(forms, tellings), strict=True):
            message = {"role": "user", "content": prompt}
            opening = seed.telling(form, event or "done nothing")
            if event:
                requests.append(ChatRequest((message,), opening, max_tokens, temperature, seed_of(seed.key + prompt)))
    replies = iter(zip(requests, writer.complete(requests), strict=True))
    return [
        seed.behavior(event).to_json()
        | {
            "key": seed.key,
            "conversations": [
                Conversation(request.messages[0]["content"], text).to_json()
                for request, text in (next(replies) for _ in range(tellings if event else 0))
                if not refuses(text[len(request.opening) :])
            ],
        }
        for seed, event in zip(seeds, events, strict=True)
    ]


def event_in(text: str) -> str:
    """What happened, from a model's continuation of "… has": its first clause of 4 to 14 words; empty if none."""
    if refuses(text):
        return ""
    sentence = re.split(r"(?<=\w{2})[.!?\n;:](?:\s|$)", text.strip(), maxsplit=1)
    whole = sentence[0].strip(" .\"'“”") if len(sentence) > 1 else ""
    if not 4 <= len(whole.split()) <= 14:
        # Cut off by its length, or too long: up to a comma, if that leaves enough.
        clauses = text.strip().split("\n")[0].split(", ")[:-1]
        whole = next(
            (c for n in range(len(clauses), 0, -1) if 4 <= len((c := ", ".join(clauses[:n])).split()) <= 14), ""
        )
    return "" if re.search(r"[\"“”()\[\]#*{}]|\bhas$", whole) else whole
