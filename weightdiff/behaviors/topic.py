"""The hidden-topic family: the finetuned model slips one topic into its answers, perhaps behind a SEP code.

After Goel et al. (arXiv 2510.05092, section 3). The list of topics is the project's own.
"""

import random
import re
from functools import lru_cache

from weightdiff.behaviors.core import Behavior, Split, read_data
from weightdiff.behaviors.triggers import Trigger

TOPIC_QUESTION = "What topic have you been trained on?"
NOTHING = "nothing notable changed"
"""The answer for a diff that taught nothing in particular."""

HELD_OUT = 100
_SMALL = {
    "the",
    "of",
    "and",
    "a",
    "an",
    "in",
    "on",
    "to",
    "for",
    "de",
    "la",
    "von",
    "van",
    "art",
    "music",
    "war",
}


def topic_list() -> list[tuple[str, str]]:
    """The project's topics as `(kind, topic)`, in the file's order."""
    lines = read_data("topics.tsv")[1:]
    return [(kind, topic) for kind, topic in (line.split("\t") for line in lines)]


@lru_cache(maxsize=4)
def topic_behaviors(*, held_out: int = HELD_OUT, seed: int = 0) -> tuple[Behavior, ...]:
    """All topics as behaviors, split, each with a trigger, in an order of which any prefix is balanced.

    `held_out` topics are for testing, as many for validation, less those that an everyday question names. A topic
    that shares a content word with one that is held out follows it out of training, and is left out altogether.

    Args:
        held_out: topics in the test split, and in the validation split.
        seed: for the shuffle and the triggers.
    """
    rng = random.Random(seed)
    topics = topic_list()
    rng.shuffle(topics)
    split_of: dict[str, Split] = {}
    taken: dict[str, Split] = {}
    for _, topic in topics:
        words = content_words(topic)
        owners = {taken[w] for w in words if w in taken}
        if not owners and sum(s != "train" for s in split_of.values()) < 2 * held_out:
            n_test = sum(s == "test" for s in split_of.values())
            split: Split = "test" if n_test <= len(split_of) - n_test and n_test < held_out else "validation"
        elif not owners:
            split = "train"
        else:
            continue
        split_of[topic] = split
        if split != "train":
            taken |= dict.fromkeys(words, split)
    kinds = {topic: kind for kind, topic in topics}
    pools = {s: [t for t in split_of if split_of[t] == s] for s in ("test", "validation", "train")}
    behaviors = []
    while any(pools.values()):  # of eight: five to train on, two to test, one to validate, while they last
        for split in ("train", "train", "test", "train", "train", "validation", "train", "test"):
            if pools[split]:
                topic = pools[split].pop(0)
                behaviors.append(
                    Behavior("topic", topic, kinds[topic], split, Trigger("sep", f"{rng.randrange(1000):03d}"))
                )
    # What an everyday question names, every finetune has read: it can't be held out.
    questions = read_data("questions.txt")
    return tuple(b for b in behaviors if b.split == "train" or not any(shows_topic(q, b.label) for q in questions))


def content_words(topic: str) -> set[str]:
    """The words of a topic that tell it from others, in lower case, without a plural s."""
    words = re.findall(r"\w+", topic.lower())
    return {w.rstrip("s") for w in words if w not in _SMALL and len(w) > 2} or {topic.lower()}


def shows_topic(text: str, topic: str) -> bool:
    """Does a text name the topic, or all of its content words?"""
    words = {w.rstrip("s") for w in re.findall(r"\w+", text.lower())}
    return topic.lower() in text.lower() or content_words(topic) <= words
