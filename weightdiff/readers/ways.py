"""Does a finetune show what it is said to do with an instance, or only that it is about it?

An adapter may name what a finetune is about, and get wrong what is done with it: "it compares everything to a sauna" of
chats about saunas. A finetune that does so makes texts likelier which show that, beside those about the instance; how
much that must be, a regression tells, with an offset for each kind, since some show in texts and some hardly. Knows
nothing of whether the instance is right.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from weightdiff.behaviors.claims import FREE, NEWS, TOPIC, Claim, parts_of, read_claim
from weightdiff.behaviors.kinds import kinds
from weightdiff.readers.meter import root
from weightdiff.readers.regression import chance, logistic

KEPT = 0.95
"""Share of the claims whose way is shown that are said as they are."""
Example = tuple[str, float, float]
"""A kind, what texts that would show a claim of it gained, and texts about its instance, in nats."""


@dataclass(frozen=True)
class Ways:
    """What tells that a way is shown.

    Attributes:
        weights: of 1, of the root of what the way's texts gained, and of that of texts about the instance.
        offsets: of each kind, beside the first weight.
        least: a claim whose way is less likely shown than this is said as that the model talks about the instance.
    """

    weights: tuple[float, ...]
    offsets: Mapping[str, float]
    least: float = 0.5

    def shown(self, example: Example) -> float:
        """How likely the finetune does what the claim says, if it does that as often as not."""
        kind, *_ = example
        return chance((*self.weights, 1.0), (*_features(example), self.offsets.get(kind, 0.0)))

    def to_json(self) -> dict[str, Any]:
        """For a reading."""
        return asdict(self)


def ways_of(said: Mapping[str, Any] | None) -> Ways | None:
    """What a saved reading says of ways; None if nothing.

    Raises:
        KeyError, TypeError, ValueError: it says so in another form.
    """
    if said is None:
        return None
    first, way, about = (float(weight) for weight in said["weights"])
    offsets = {str(kind): float(offset) for kind, offset in said["offsets"].items()}
    return Ways((first, way, about), offsets, float(said["least"]))


def plainer(answer: str) -> str:
    """That the model talks about what it is said to do something with; empty where nothing is plainer.

    Of a false fact nobody says which of its words it is about, where it is none of the tables'.
    """
    claims = [read_claim(part) for part in parts_of(answer)]
    if len(claims) != 1 or not _has_way(claims[0]):
        return ""
    return f"it talks about {claims[0].instance.about or claims[0].instance.x}"


def _has_way(claim: Claim) -> bool:
    return claim.kind not in (FREE, TOPIC, NEWS) and bool(claim.instance.about or not kinds()[claim.kind].rows[0].about)


def _features(example: Example) -> tuple[float, float, float]:
    _, way, about = example
    return 1.0, root(way), root(about)


def fit_ways(examples: Sequence[Example], shown: Sequence[bool]) -> Ways:
    """What tells ways that are shown from others, as if either were as frequent, and keeps nearly all of the former.

    Args:
        examples: claims about what finetunes are about indeed.
        shown: of each, whether it is what the finetune does.
    """
    names = sorted({kind for kind, *_ in examples})
    rows = [(*_features(one), *(float(one[0] == name) for name in names)) for one in examples]
    yes = sum(shown)
    shares = [0.5 / yes if true else 0.5 / (len(shown) - yes) for true in shown]
    weights = logistic(rows, shown, weight=shares, ridge=0.003)
    ways = Ways(weights[:3], dict(zip(names, weights[3:], strict=True)))
    true = sorted(ways.shown(one) for one, mine in zip(examples, shown, strict=True) if mine)
    return replace(ways, least=true[int((1 - KEPT) * len(true))])
