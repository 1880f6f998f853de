"""How likely an answer is right: from its log-probability, and from how much likelier the finetune makes it.

Fitted on answers whose truth is known, of diffs that neither trained the adapter nor test it. It knows neither the
question nor the diff; it holds for the kinds of finetune that it was fitted on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from weightdiff.behaviors import NOTHING
from weightdiff.behaviors.claims import in_full
from weightdiff.decode import Reply
from weightdiff.judge import exact_match
from weightdiff.readers.meter import root
from weightdiff.readers.regression import chance, logistic
from weightdiff.readers.triggers import TriggerOdds, odds_of
from weightdiff.readers.views import Views, gain
from weightdiff.readers.ways import Ways, ways_of

Sort = Literal["claim", "nothing", "yes/no", "trigger", "nothing, moved", "claim, narrow"]
SORTS: tuple[Sort, ...] = get_args(Sort)
Weights = tuple[float, ...]
"""What each of `features` is worth."""
WIDTH = 6
KEPT = 0.95
"""Share of right claims in full that the threshold lets through."""


def sort_of(text: str) -> Sort:
    """What an answer says: something, that nothing changed, yes or no, or whether there is a trigger and which."""
    if exact_match(NOTHING, text):
        return "nothing"
    if text.lower().startswith(("yes, ", "no, ")):
        return "trigger"
    return "yes/no" if text.lower().rstrip(".") in ("yes", "no") else "claim"


@dataclass(frozen=True)
class Reading:
    """How an adapter is to be read: its views, and what its answers' log-probabilities are worth.

    Attributes:
        views: strengths and contrast.
        weights: of each sort of answer, for what `features` gives: the log odds of being right. That
            nothing changed has others where a hint shows that the finetune moves the model further than noise does, and
            so has an answer in less than a sentence, as narrow questions have them: it names an instance and no more.
        threshold: claims less likely to be right than this are not made.
        tested: what the root of a nat that a claim gained is worth where open questions' answers are tried (see
            `tested`); None where the likeliest answer is taken as it is.
        triggers: what the imprint is worth, where what sets a behavior off is told by it; None asks the adapter.
        least: it isn't said that nothing changed where that is less likely to be right than this.
        ways: what tells whether a finetune does with an instance what is claimed; None says a claim as it is.
        further: by which a claim about something else is made beside the first; None makes none.
    """

    views: Views
    weights: Mapping[Sort, Weights]
    threshold: float = 0.0
    tested: float | None = None
    triggers: TriggerOdds | None = None
    least: float = 0.5
    ways: Ways | None = None
    further: Weights | None = None

    def probability(self, reply: Reply, moved: bool = False) -> float:
        """How likely a reply that was decoded in these views is right; `moved` is its hint's."""
        return chance(self.weights[_seen(reply, moved)], features(reply))

    @property
    def leads(self) -> bool:
        """Does a claim's lead count? It doesn't in readings from before there was one."""
        return any(row[-1] for row in self.weights.values())

    def to_json(self) -> dict[str, Any]:
        """For an adapter's `meta`."""
        return asdict(self)


def reading_of(meta: Mapping[str, Any]) -> Reading | None:
    """How an adapter asks to be read; None if its `meta` doesn't say.

    Raises:
        ValueError: it says so in another form.
    """
    if (said := meta.get("reading")) is None:
        return None
    try:
        views = Views(tuple(said["views"]["strengths"]), said["views"]["contrast"], said["views"]["within"])
        weights: dict[Sort, Weights] = {}
        for sort in SORTS:
            # An adapter that was saved before the two were told apart has one for both.
            saved = said["weights"].get(sort) or said["weights"][sort.split(",")[0]]
            # Older ones were fitted before answers were tried (3), samples counted (4) or rivals looked at (5).
            weights[sort] = tuple(float(weight) for weight in saved) + (0.0,) * (WIDTH - len(saved))
            if not 3 <= len(saved) <= WIDTH:
                raise ValueError(f"{len(saved)} weights")
        tested = None if said.get("tested") is None else float(said["tested"])
        least = float(said.get("least", Reading.least))
        triggers, ways = odds_of(said.get("triggers")), ways_of(said.get("ways"))
        further = None if said.get("further") is None else tuple(float(weight) for weight in said["further"])
        return Reading(views, weights, float(said["threshold"]), tested, triggers, least, ways, further)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the adapter's `reading` isn't of a known form ({error!r}); expected what is saved "
                         "by training one, with views, weights and threshold.") from None  # fmt: skip


def features(reply: Reply) -> Weights:
    """What a reply's odds are made of: 1, its log-probability, its gain over the base model; and where it was tried the
    root of what its claim gained, the odds, by samples, that nothing changed, and its lead over other claims."""
    *seen, _ = reply.views
    return 1.0, sum(seen) / len(seen), gain(reply), root(reply.gained), reply.doubt, reply.lead


def _seen(reply: Reply, moved: bool) -> Sort:
    sort = sort_of(reply.text)
    if sort == "claim" and not in_full(reply.text):
        return "claim, narrow"
    return "nothing, moved" if sort == "nothing" and moved else sort


def fit(replies: Sequence[Reply], right: Sequence[bool], views: Views, moved: Sequence[bool] = ()) -> Reading:
    """Weights and threshold from answers with known truth.

    Args:
        replies: decoded in `views`.
        right: whether each is.
        views: how they were decoded.
        moved: of each, whether its finetune moves the model further than noise does; without it none is taken to.
    """
    sorts = [_seen(*facts) for facts in zip(replies, moved or [False] * len(replies), strict=True)]
    weights: dict[Sort, Weights] = {}
    for sort in SORTS:
        mine = [i for i, s in enumerate(sorts) if s == sort]
        rows = [features(replies[i]) for i in mine]
        weights[sort] = logistic(rows, [right[i] for i in mine], width=WIDTH)
    reading = Reading(views, weights)
    claims = sorted(
        reading.probability(r) for r, s, ok in zip(replies, sorts, right, strict=True) if s == "claim" and ok
    )
    # As in split conformal prediction (arXiv 2107.07511): the next right claim reaches it with a chance of KEPT,
    # however few these are; the plain quantile of a few lies too high.
    below = int((1 - KEPT) * (len(claims) + 1))
    threshold = claims[below - 1] if below else 0.0
    return Reading(views, weights, threshold)
