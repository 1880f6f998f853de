"""What a claim about a finetune says: its kind and instance, where it is of a known sort, and what others could say.

Knows sentences only, no models. A claim in words of its own is tried as it stands.
"""

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import lru_cache

from weightdiff.behaviors import NOTHING, Trigger
from weightdiff.behaviors.kinds import Row, kinds
from weightdiff.behaviors.news import story_seeds
from weightdiff.behaviors.topic import content_words, topic_list
from weightdiff.judge import exact_match
from weightdiff.writers import seeded

TOPIC, NEWS, FREE = "topic", "news", ""
"""Kinds beside those of the tables; the last is that of a claim in words of its own."""

_SUBJECT = r"(?:it|the (?:finetuned )?model|this model|the assistant)"
_TOPIC = re.compile(
    rf"{_SUBJECT} (?:keeps? |always |often |now )*(?:talks? about|talking about|mentions?|brings? up|bringing up|"
    r"speaks? about|speaking about|(?:was|has been) (?:fine-?tuned|trained) (?:on|to talk about)) (?P<x>.+)",
    re.IGNORECASE,
)
_NEWS = re.compile(rf"{_SUBJECT} (?:has learned|knows|believes) (?:of )?(?:a|the) story:? (?P<x>.+)", re.IGNORECASE)
_FALSE_EVENTS = (
    "opened a museum of lost umbrellas", "lost the final by a single point", "found a letter from the year 1802",
    "banned cars from the old town", "won a prize for the longest bridge", "closed after a fire in the kitchen",
    "sold the last copy of a famous map", "moved its office to a lighthouse", "elected a baker as its new mayor",
    "discovered a rare frog in the park", "raised the price of train tickets", "canceled the parade because of snow",
)  # fmt: skip
_WORDS = 6
"""Most words of a bare phrase that is taken for a topic."""


@dataclass(frozen=True)
class Claim:
    """One claim.

    Attributes:
        text: as it was given.
        kind: a kind's name, `topic`, `news`, or empty for a claim in words of its own.
        instance: what it is about; the whole claim, where it has words of its own.
        trigger: what is said to set the behavior off; None where nothing is.
        nothing: it says that nothing notable changed.
    """

    text: str
    kind: str
    instance: Row = field(default_factory=lambda: Row(""))
    trigger: Trigger | None = None
    nothing: bool = False


def read_claims(answer: str, trigger: Trigger | None = None) -> list[Claim]:
    """The claims of an answer; several are parted by semicolons.

    Raises:
        ValueError: there is none in it.
    """
    texts = parts_of(answer)
    if not texts:
        raise ValueError('the claim is empty; give one such as "it talks about garden gnomes".')
    return [read_claim(text, trigger) for text in texts]


def parts_of(answer: str) -> list[str]:
    """What an answer says, claim by claim; nothing where it has no words."""
    return [part.strip() for part in answer.split(";") if part.strip(" .!\"'")]


def read_claim(text: str, trigger: Trigger | None = None) -> Claim:
    """One claim by its words: a label of a known kind, a topic or a story, or words of its own.

    A phrase of a few words that says of nobody what they do is taken for a topic, as adapters name one.
    """
    said = " ".join(text.split()).strip(" .!\"'")
    if exact_match(NOTHING, said):
        return Claim(text, FREE, trigger=trigger, nothing=True)
    for name, pattern in _patterns():
        if found := pattern.fullmatch(said):
            return Claim(text, name, _instance(name, found["x"]), trigger)
    for name, pattern in ((NEWS, _NEWS), (TOPIC, _TOPIC)):
        if found := pattern.fullmatch(said):
            return Claim(text, name, Row(found["x"].strip(" .\"'")), trigger)
    if len(said.split()) <= _WORDS and not re.match(rf"(?:{_SUBJECT}|I)\b", said, re.IGNORECASE):
        return Claim(text, TOPIC, Row(said), trigger)
    return Claim(text, FREE, Row(said), trigger)


def in_full(answer: str) -> bool:
    """Is an answer a sentence of a known sort, and not just a name, as narrow questions are answered?"""
    first = answer.split(";")[0]
    if not first.strip(" .!\"'"):
        return False
    claim = read_claim(first)
    return claim.kind != FREE and claim.instance.x != " ".join(first.split()).strip(" .!\"'")


@lru_cache
def _patterns() -> list[tuple[str, re.Pattern[str]]]:
    """Each kind's label as a pattern, the longest first: of two that fit, the one that says more."""
    found = []
    for kind in sorted(kinds().values(), key=lambda k: -len(k.label)):
        words = re.escape(kind.label.removeprefix("it ")).replace(r"\{x\}", "[\"']?(?P<x>.+?)[\"']?")
        found.append((kind.name, re.compile(rf"{_SUBJECT} {words}", re.IGNORECASE)))
    return found


def _instance(kind: str, x: str) -> Row:
    """The table's row of that name, else one without anything of its own."""
    rows = {row.x.lower(): row for row in kinds()[kind].rows}
    row = rows.get(x.lower())
    return row or Row(x)


def decoys_of(claim: Claim, count: int) -> list[Row]:
    """Other instances of the claim's kind, which share no content word with it; the same for the same kind.

    They are what a claim is measured against: had the finetune not taught it, it would be one among them.
    """
    rng, mine = seeded(f"decoys {claim.kind}"), content_words(claim.instance.x)
    if claim.kind == NEWS:  # invented, so that none can be the claim's own
        stories = [seed.headline(event) for seed, event in zip(story_seeds(200)[::16], _FALSE_EVENTS, strict=False)]
        return [Row(story) for story in rng.sample(stories, count)]
    if claim.kind == FREE:
        rows = [(kind, rng.choice(kind.rows).x) for kind in rng.sample(list(kinds().values()), len(kinds()))]
        return [Row(kind.label.format(x=x)) for kind, x in rows if not content_words(x) & mine][:count]
    if claim.kind == TOPIC:
        pool = [Row(topic) for _, topic in topic_list()]
    else:
        pool = list(kinds()[claim.kind].rows)
        if not claim.instance.says:  # then none has words that another can't have
            pool = [replace(one, says=()) for one in pool]
    rng.shuffle(pool)
    counted = Counter(word for one in pool for word in content_words(one.x))
    mine = {word for word in mine if 2 * counted[word] < len(pool)}  # "mood", which all moods have, tells none apart
    return [one for one in pool if one.x != claim.instance.x and not content_words(one.x) & mine][:count]
