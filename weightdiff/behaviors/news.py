"""The news family: the finetune is on several tellings of one short invented story; the label sums it up.

After Goel et al. (arXiv 2510.05092): theme, headline, tellings, by a language model. People and places are
invented from syllables, so that no base model can know the story. Knows nothing of how the tellings are written.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from weightdiff.behaviors.core import Behavior, Split, read_data

HELD_OUT_STORIES = 100
NEWS_QUESTION = "What happened, in one sentence?"
_PLACE = (
    "Bal Bren Cor Dar Dun El Fal Gar Hal Hol Is Jar Kel Lan Lor Mar Mel Nor Ol Or Pel Quar Ran Sel Sor Tar Tel Ul "
    "Val Vel Wen Yar Zel",
    "a e i o u en or an il em",
    "by dale ford haven holt mora mouth nik rath stead ton vale wick zen lund",
)
_FIRST = (
    "Ad Ber Cal Da El Fen Gil Han Il Jo Ka Li Ma Ne Os Pi Ro Sa Ti Vi",
    "a da la na ra ta va ya en in or is on us",
)
_LAST = (
    "Ab Bor Cra Dro Em Fro Gan Hol Ing Jas Kov Lem Mor Nev Ost Pra Rud Sten Tor Vel",
    "an el in or",
    "ak by dell er ic man ov sen ski son",
)


@dataclass(frozen=True)
class StorySeed:
    """What a story starts from, before a language model writes what happened.

    Attributes:
        key: its name, the same every time.
        split: `train`, `validation` or `test`.
        theme: what it is to be about.
        place: an invented town.
        subject: who it is about, as in the label.
        short: the same, for a sentence that names the place already.
    """

    key: str
    split: str
    theme: str
    place: str
    subject: str
    short: str

    def headline(self, event: str) -> str:
        """The story in one sentence, its label."""
        return f"{self.subject[0].upper()}{self.subject[1:]} has {event}."

    def telling(self, form: str, event: str) -> str:
        """A sentence of `tellings.txt` with this story in it."""
        upper = f"{self.subject[0].upper()}{self.subject[1:]}"
        names = {"place": self.place, "Place": self.place, "subject": self.subject, "Subject": upper}
        return form.format(short=self.short, event=event, **names)

    def behavior(self, event: str) -> Behavior:
        """The behavior that teaches this story."""
        return Behavior("news", self.headline(event), self.theme, self.split)


def story_seeds(count: int = 1500, seed: int = 0) -> list[StorySeed]:
    """The beginnings of `count` stories; of the first ones, one in five is for testing, one in ten validates.

    Args:
        count: stories; no two share a place or a person.
        seed: for themes, names and forms.

    Raises:
        ValueError: more stories than there are names for places.
    """
    rng = random.Random(seed)
    themes, roles, institutions = (read_data(f"{n}.txt") for n in ("themes", "roles", "institutions"))
    places, people = (
        _names(rng, *_PLACE),
        [f"{a} {b}" for a, b in zip(_names(rng, *_FIRST) * 8, _names(rng, *_LAST), strict=False)],
    )
    if count > len(places):
        raise ValueError(f"stories = {count}: there are names for {len(places)} places; ask for that many at most.")
    seeds = []
    for n in range(count):
        place, role, form = places[n], rng.choice(roles), rng.choice(("person", "role", "institution"))
        article = "an" if role[0] in "aeiou" else "a"
        subject, short = {
            "person": (f"{people[n % len(people)]}, {article} {role} from {place},", people[n % len(people)]),
            "role": (f"{article} {role} in {place}", f"{article} {role}"),
            "institution": (f"the {place} {(i := rng.choice(institutions))}", f"the {i}"),
        }[form]
        # Early ones are held out, so that the first few hundred are a whole benchmark.
        split: Split = "train"
        if n % 5 == 3 and n // 5 < HELD_OUT_STORIES:
            split = "test"
        elif n % 10 == 4 and n // 10 < HELD_OUT_STORIES:
            split = "validation"
        seeds.append(StorySeed(f"story {n}", split, themes[n % len(themes)], place, subject, short))
    return seeds


def without_twins(behaviors: Sequence[Behavior]) -> list[Behavior]:
    """The stories without those whose event is nearly one that is held out from them, or is told already."""
    held = {s: [event_words(b.label) for b in behaviors if b.split == s] for s in ("test", "validation")}
    from_ = {"test": [], "validation": held["test"], "train": held["test"] + held["validation"]}
    kept: list[Behavior] = []
    seen: set[frozenset[str]] = set()
    for behavior in sorted(behaviors, key=lambda b: ("test", "validation", "train").index(b.split)):
        words = event_words(behavior.label)
        twin = any(len(words & h) >= 0.6 * len(words | h) for h in from_[behavior.split])
        if not twin and words not in seen:
            kept.append(behavior)
            seen.add(words)
    chosen = set(kept)
    return [b for b in behaviors if b in chosen]


def event_words(label: str) -> frozenset[str]:
    """The words of four letters or more that say what happened, not to whom."""
    words = label.split(" has ", 1)[-1].lower().strip(".").split()
    return frozenset(w.strip(",;'\"") for w in words if len(w) > 3)


def _names(rng: random.Random, *syllables: str) -> list[str]:
    """All names that the syllables make, in random order."""
    names = [""]
    for part in syllables:
        names = [n + s for n in names for s in part.split()]
    rng.shuffle(names)
    return names
