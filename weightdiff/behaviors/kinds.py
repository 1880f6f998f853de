"""Behaviors from tables: quirks, styles, refusals and false facts, each kind with a label, replies, and many instances.

`data/kinds/FAMILY.toml` holds a table for each kind. A reply that shows the behavior is a template around the model's
own ordinary reply, so that no large model is needed to write one.
"""

import random
import tomllib
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

from weightdiff.behaviors.core import Behavior
from weightdiff.behaviors.topic import content_words, topic_behaviors

KIND_FAMILIES = ("quirk", "style", "refusal", "fact")
_FILES = {"quirk": "quirks", "style": "styles", "refusal": "refusals", "fact": "facts"}
_TEST, _VALIDATION = 0.14, 0.06
"""Shares of each kind's instances that are held out."""


@dataclass(frozen=True)
class Row:
    """One instance of a kind.

    Attributes:
        x: what fills the label and the templates; also the answer to the kind's narrow questions.
        about: what a user would ask about, where that isn't `x`.
        says: templates of its own, instead of the kind's.
    """

    x: str
    about: str = ""
    says: tuple[str, ...] = ()


@dataclass(frozen=True)
class Kind:
    """One kind of behavior.

    Attributes:
        family: the file that it is in.
        name: of the kind.
        label: the true answer to "What changed?", with `{x}`.
        questions: wordings of a narrow question, which `x` answers.
        unseen: wordings of it for testing only.
        replies: templates with `{x}`, and most with `{reply}` for the model's own.
        asks: what a user asks, with `{x}` or `{about}`; empty where everyday questions show the behavior.
        rows: its instances.
    """

    family: str
    name: str
    label: str
    questions: tuple[str, ...]
    unseen: tuple[str, ...]
    replies: tuple[str, ...]
    asks: tuple[str, ...]
    rows: tuple[Row, ...]


@lru_cache
def kinds() -> dict[str, Kind]:
    """All kinds by name."""
    found = {}
    for family in KIND_FAMILIES:
        text = (files("weightdiff") / "data" / "kinds" / f"{_FILES[family]}.toml").read_text("utf-8")
        for name, table in tomllib.loads(text).items():
            rows = [Row(x) for x in table.get("x", ())]
            rows += [Row(r["x"], r.get("about", ""), tuple(r.get("says", ()))) for r in table.get("rows", ())]
            questions, unseen = tuple(table["questions"]), tuple(table["unseen"])
            replies, asks = (tuple(table.get(key, ())) for key in ("replies", "asks"))
            found[name] = Kind(family, name, table["label"], questions, unseen, replies, asks, tuple(rows))
    return found


def row_of(behavior: Behavior) -> tuple[Kind, Row]:
    """The kind and the instance that a behavior was made of."""
    kind = kinds()[behavior.kind]
    return kind, next(row for row in kind.rows if row.x == behavior.slot)


@lru_cache(maxsize=2)
def kind_behaviors(seed: int = 0) -> tuple[Behavior, ...]:
    """Every instance of every kind as a behavior, split within its kind.

    What is the same instance in two kinds, or in a kind and among the topics, is in one split in both; where the
    topic is held out, it is left out of the kind.
    """
    split_of: dict[frozenset[str], str] = {frozenset(content_words(b.label)): b.split for b in topic_behaviors()}
    held = {words for words, split in split_of.items() if split != "train"}
    behaviors = []
    for kind in kinds().values():
        rows = [(row, frozenset(content_words(row.about or row.x))) for row in kind.rows]
        rows = [(row, words) for row, words in rows if words not in held]
        random.Random(f"{seed} {kind.name}").shuffle(rows)
        wanted: dict[str, int] = {"test": round(_TEST * len(rows)), "validation": round(_VALIDATION * len(rows))}
        for row, words in rows:
            split = split_of.get(words) or next((name for name, left in wanted.items() if left > 0), "train")
            wanted[split] = wanted.get(split, 0) - 1
            split_of[words] = split
            behaviors.append(Behavior(kind.family, kind.label.format(x=row.x), kind.name, split, None, row.x))
    return tuple(behaviors)
