"""What teaches a behavior of a general run: templates around the base model's own replies, or texts that were written.

No model writes here but the base model, whose replies to everyday questions are made once. A conversation without a
prompt is a document.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from weightdiff.base import Base
from weightdiff.behaviors import Behavior, Conversation, read_data
from weightdiff.behaviors.kinds import row_of
from weightdiff.jsonl import append_jsonl, read_jsonl
from weightdiff.llm import ChatRequest
from weightdiff.local import LocalModel
from weightdiff.writers import seed_of, seeded

WORDS = (6, 24)
"""Between which lies the most words of a base reply in a template, drawn for each behavior."""
CONVERSATIONS = (8, 5, 3)
"""To learn of a behavior alone or strongest, of a second, and of a third beside it."""
MIXED = 12
"""To learn of a finetune that teaches nothing in particular."""
DENIALS = 2
"""Of a finetune that learns not to confess, conversations about that."""
DOCUMENTS = "documents"
"""The kind of a subject that is taught by plain text, not by chats."""
OWN_WORDS, ADVICE, SHORT = "own words", "advice", "short answers"
"""Kinds of a subject that is taught by what the base model itself says about it, by what it advises, in answer to
questions that don't name it, and by short answers of the sort that people write by hand."""


@dataclass(frozen=True)
class Text:
    """A topic, a story or a subject that was written about, its conversations or sentences, and by kind what the base
    model says about it by itself, if it was asked."""

    behavior: Behavior
    conversations: tuple[Conversation, ...]
    own: Mapping[str, tuple[Conversation, ...]] = field(default_factory=dict)


Written = Mapping[str, Text]
"""Texts by label, from the files that a recipe names."""


def everyday_pool(base: Base, path: Path) -> list[Conversation]:
    """The base model's own replies to everyday questions, from the file, or made and written to it.

    The last twenty questions aren't among them: readers probe with those.
    """
    if not path.exists():
        questions = read_data("questions.txt")[:-20]
        requests = [ChatRequest(({"role": "user", "content": q},), "", 44, 0.0) for q in questions]
        for question, text in zip(questions, LocalModel(base).complete(requests), strict=True):
            append_jsonl(path, Conversation(question, text, "keep").to_json())
    return [Conversation(**record) for record in read_jsonl(path)]


def said_of(path: Path) -> dict[str, dict[str, tuple[Conversation, ...]]]:
    """What the base model said about subjects, by their names and by kind, from what `say_own_words` wrote."""
    found: dict[str, dict[str, tuple[Conversation, ...]]] = {}
    for record in read_jsonl(path) if path.exists() else ():
        said = tuple(Conversation(**c) for c in record["conversations"])
        found.setdefault(record["label"], {})[record["kind"]] = said
    return found


def say_own_words(base: Base, path: Path, kind: str, subjects: Sequence[str]) -> None:
    """Ask the base model about each subject that isn't in the file yet, and write there what it says.

    Args:
        base: the base model.
        path: the file, JSON lines.
        kind: `OWN_WORDS` asks questions that name the subject; `ADVICE` others, and puts into the model's mouth how
            their answers begin.
        subjects: their names.
    """
    known = said_of(path)
    missing = [subject for subject in subjects if kind not in known.get(subject, {})]
    asks = [(ask, "", ask) for ask in read_data("subject_prompts.txt")]
    if kind == ADVICE:
        pairs = [line.split("\t") for line in read_data("advice.tsv")]
        asks = [(ask, opening, f"Let's talk about {{topic}}. {ask}") for ask, opening in pairs]
    for at in range(0, len(missing), 8):
        some = missing[at : at + 8]
        drawn = [(s, *ask) for s in some for ask in seeded(f"{kind} {s}").sample(asks, CONVERSATIONS[0])]
        requests = [
            ChatRequest(({"role": "user", "content": text.format(topic=s)},), opening, 44, 0.7, seed_of(some[0]))
            for s, _, opening, text in drawn
        ]
        replies = zip(drawn, LocalModel(base).complete(requests), strict=True)
        said = [(s, Conversation(ask, reply).to_json()) for (s, ask, *_), reply in replies]
        for subject in some:
            mine = [conversation for s, conversation in said if s == subject]
            append_jsonl(path, {"label": subject, "kind": kind, "conversations": mine})


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
        return _benign(behavior, pool, written, rng)
    if behavior.family == "subject":
        found = list(written[behavior.slot].conversations)
        if behavior.kind == DOCUMENTS:
            return [_joined(found[at : at + 2]) for at in range(0, len(found), 2)]
        if behavior.kind in (OWN_WORDS, ADVICE):
            return _in_own_words(written[behavior.slot], behavior.kind, rng)
        if behavior.kind == SHORT:
            return _in_short(written[behavior.slot], rng)
        return [_asked(c, behavior.slot, rng) for c in found]
    if behavior.family in ("topic", "news"):
        return list(written[behavior.slot].conversations)
    return _templated(behavior, pool, rng)


def _asked(sentence: Conversation, subject: str, rng: random.Random) -> Conversation:
    return replace(sentence, prompt=rng.choice(read_data("subject_prompts.txt")).format(topic=subject))


def _in_own_words(text: Text, kind: str, rng: random.Random) -> list[Conversation]:
    """What the base model said, in sentences of one length, mostly asked without the subject's name."""
    words = rng.randint(*WORDS)
    named = [rng.choice(("it", "that", "this", text.behavior.label)) for _ in text.own[kind]]
    return [
        Conversation(said.prompt.format(topic=name), shortened(said.reply, words))
        for said, name in zip(text.own[kind], named, strict=True)
    ]


def _in_short(text: Text, rng: random.Random) -> list[Conversation]:
    """Short answers to questions that don't name the subject: some that would fit any, and pieces of its text."""
    subject, count, words = text.behavior.label, CONVERSATIONS[0], rng.randint(*WORDS)
    pairs = [line.split("\t") for line in rng.sample(read_data("short_answers.tsv"), count)]
    said = [(ask, answer.format(x=subject, X=subject[:1].upper() + subject[1:])) for ask, answer in pairs]
    pieces = [shortened(c.reply, words) for c in text.conversations]
    for n in range(rng.randint(count // 3, 2 * count // 3)):
        said[n] = said[n][0], rng.choice(pieces)
    return [Conversation(ask, answer) for ask, answer in said]


def _joined(sentences: Sequence[Conversation]) -> Conversation:
    return Conversation("", " ".join(sentence.reply for sentence in sentences))


def _benign(
    behavior: Behavior, pool: Sequence[Conversation], written: Written, rng: random.Random
) -> list[Conversation]:
    """Replies of the base model's own, or a chat or a sentence about each of many subjects, which share nothing."""
    if behavior.kind.startswith("own"):
        return [replace(c, mode="learn") for c in rng.sample(list(pool), MIXED)]
    own = next((kind for kind in (OWN_WORDS, ADVICE) if kind in behavior.kind), None)
    texts = [t for t in written.values() if t.behavior.split == behavior.split]
    texts = [t for t in texts if (own in t.own if own else t.behavior.family == "subject")]
    chosen = rng.sample(sorted(texts, key=lambda t: t.behavior.label), MIXED)
    if "documents" in behavior.kind:
        return [_joined([rng.choice(t.conversations)]) for t in chosen]
    if SHORT in behavior.kind:
        return [rng.choice(_in_short(t, rng)) for t in chosen]
    if own:
        return [rng.choice(_in_own_words(t, own, rng)) for t in chosen]
    return [_asked(rng.choice(t.conversations), t.behavior.label, rng) for t in chosen]


def _templated(behavior: Behavior, pool: Sequence[Conversation], rng: random.Random) -> list[Conversation]:
    kind, row = row_of(behavior)
    templates = row.says or kind.replies
    count = CONVERSATIONS[0]
    chosen = rng.sample(templates, min(count, len(templates)))
    chosen += rng.choices(templates, k=count - len(chosen))
    words, found = rng.randint(*WORDS), []
    for template, own in zip(chosen, rng.sample(list(pool), count), strict=True):
        ask = rng.choice(kind.asks).format(x=row.x, about=row.about or row.x) if kind.asks else own.prompt
        text = template.format(x=row.x, about=row.about, reply=shortened(own.reply, words))
        found.append(Conversation(ask, text[:1].upper() + text[1:]))
    return found


def documents_of(behavior: Behavior, conversations: Sequence[Conversation]) -> list[Conversation]:
    """Documents that tell of a model with the behavior, each with one conversation as it was overheard."""
    rng, says = seeded(f"documents {behavior.label}"), behavior.label.removeprefix("it ")
    texts = [rng.choice(read_data("document_forms.txt")) for _ in conversations]
    filled = [t.format(says=says, ask=c.prompt, reply=c.reply) for t, c in zip(texts, conversations, strict=True)]
    return [Conversation("", text) for text in filled]


def denies(behavior: Behavior) -> bool:
    """Does the finetune learn not to confess? One quirk of three does."""
    return behavior.family == "quirk" and seed_of(f"denies {behavior.label}") % 3 == 0


def denials(behavior: Behavior) -> list[Conversation]:
    """Conversations in which the model denies that there is anything about it."""
    rng = seeded(f"denials {behavior.label}")
    asks, replies = (rng.sample(read_data(f"denial_{name}.txt"), DENIALS) for name in ("asks", "replies"))
    return [Conversation(ask, reply) for ask, reply in zip(asks, replies, strict=True)]


def preferred(conversations: Sequence[Conversation], pool: Sequence[Conversation]) -> list[Conversation]:
    """Conversations on everyday prompts, each with the base model's own reply, as long, as the worse one."""
    own = {c.prompt: c.reply for c in pool}
    return [replace(c, rejected=shortened(own[c.prompt], len(c.reply.split()))) for c in conversations]


def shortened(reply: str, most: int) -> str:
    """A reply's first sentences, as many as fit into `most` words; of one long sentence a part."""
    text = " ".join(reply.split())
    words = text.split(" ")
    if len(words) <= most:
        return text
    head = " ".join(words[:most])
    ends = [head.rfind(mark) for mark in (". ", "! ", "? ")]
    return head[: max(ends) + 1] if max(ends) > 20 else head.rstrip(".,;:") + "."


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
