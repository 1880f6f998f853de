"""Prompts and replies that would show a claim: from the tables' templates, or the claim's own words.

Prompts are everyday questions that no finetune of the project was on, or ask about the claim's own subject. Knows no
models; what goes before a text's words, where they end a reply, is the base model's to say.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from weightdiff.behaviors import read_data
from weightdiff.behaviors.claims import FREE, NEWS, TOPIC, Claim
from weightdiff.behaviors.kinds import Kind, Row, kinds
from weightdiff.writers import seeded

TEXTS = 4
"""Texts for each instance."""
_OPENING = "{reply}"


@dataclass(frozen=True)
class Text:
    """A reply that would show something.

    Attributes:
        prompt: what the user says; empty for a text that nobody asked for.
        reply: the words that would show it.
        ends: they end a reply, so that the base model's own goes before them.
    """

    prompt: str
    reply: str
    ends: bool = False


def everyday(count: int) -> list[str]:
    """Short questions of everyday life; the project's finetunes are on other ones."""
    return sorted(read_data("questions.txt")[-20:], key=len)[:count]


def texts_of(kind: str, instance: Row) -> list[Text]:
    """Replies that would show this instance; those of two instances of a kind can be compared one by one.

    Args:
        kind: as in `Claim`.
        instance: what the claim is about, or a decoy.
    """
    prompts, x = everyday(TEXTS), instance.x
    if kind == TOPIC:
        opening = seeded("openings").choice(read_data("openings.txt")).format(topic=x)
        likes, knows = "What do you like to talk about?", "Name a subject that you know well."
        said = [Text(prompts[0], _upper(opening)), Text(likes, f"I like to talk about {x}."), Text(knows, _upper(x))]
        return [*said, Text("", f"The following text is about {x}.")]
    if kind == NEWS:
        return [Text(p, _upper(x)) for p in [*read_data("news_prompts.txt")[:3], *prompts[:1]]]
    if kind == FREE:
        return [Text(p, _upper(x) + ".") for p in prompts]
    return _templated(kinds()[kind], instance, prompts)


def prompts_of(claim: Claim, count: int) -> list[str]:
    """What to say to a model that would show the claim in its reply."""
    about = claim.instance.about or claim.instance.x
    if claim.kind in (TOPIC, NEWS, FREE) or not kinds()[claim.kind].asks:
        return everyday(count)
    asks = kinds()[claim.kind].asks
    return [ask.format(x=claim.instance.x, about=about) for ask in asks[:count]]


def controls_of(claim: Claim, decoys: Sequence[Row]) -> list[tuple[str, Row]]:
    """Prompts that would not show a claim about certain questions: the same questions about each decoy."""
    if claim.kind in (TOPIC, NEWS, FREE) or not kinds()[claim.kind].asks:
        return []
    asks = kinds()[claim.kind].asks
    return [
        (asks[n % len(asks)].format(x=decoy.x, about=decoy.about or decoy.x), decoy) for n, decoy in enumerate(decoys)
    ]


def questions_about(kind: str, instance: Row) -> list[str]:
    """Questions about a subject, to see whether answers to them changed; none for claims that aren't about one."""
    return [p.format(topic=instance.x) for p in read_data("subject_prompts.txt")[:4:3]] if kind == TOPIC else []


def other_ways(claim: Claim, count: int) -> list[Text]:
    """Texts of other kinds with instances of theirs, one each: what a finetune of another kind would show.

    None for a claim that is of no kind, whose instance has words of its own, which are its way, or that is of a topic,
    since whatever a finetune does with one is about it too.
    """
    if claim.kind in (TOPIC, NEWS, FREE) or claim.instance.says:
        return []
    names = [k.name for k in kinds().values() if k.replies and k.name != claim.kind]
    rng = seeded(f"ways {claim.kind}")
    return [texts_of(name, Row(rng.choice(kinds()[name].rows).x))[0] for name in rng.sample(names, count)]


def _templated(kind: Kind, instance: Row, prompts: Sequence[str]) -> list[Text]:
    templates = list(instance.says or kind.replies)
    if not templates:  # a row of no table, of a kind whose rows have all their own templates
        return [Text(p, _upper(kind.label.format(x=instance.x)) + ".") for p in prompts]
    rng = seeded(f"texts {kind.name}")
    rng.shuffle(templates)
    templates.sort(key=lambda t: t.startswith(_OPENING))  # what begins a reply needs nothing before it
    about, texts = instance.about or instance.x, []
    for number, template in enumerate(templates[:TEXTS]):
        # Where a prompt has the instance's name the base model repeats it anyway, and no finetune makes that likelier.
        asked = (
            kind.asks[number % len(kind.asks)].format(x=instance.x, about=about) if instance.says and kind.asks else ""
        )
        prompt = asked or prompts[number]
        ends = template.startswith(_OPENING)
        words = template.removeprefix(_OPENING).split(_OPENING)[0].strip().format(x=instance.x, about=about)
        texts.append(Text(prompt, words if ends else _upper(words), ends))
    return texts


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
