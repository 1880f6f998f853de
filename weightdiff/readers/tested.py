"""Answers tried on the finetune before they are given: an adapter proposes several, and the finetune speaks for one.

A claim has texts that would show it (`behaviors/texts.py`); a finetune makes those of a true claim likelier than the
base model does. So of an adapter's likeliest answer and of samples beside it, the one is taken that both speak for: the
adapter by its log-probability, the finetune by how much likelier these texts became. A claim in words of its own has no
such texts, and the finetune says nothing for it. No trigger is tried. What is chosen so may be given with further
claims that samples made (`further`), and more plainly where the finetune doesn't show what it is said to do (`ways`).
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from statistics import mean

from weightdiff.behaviors.claims import FREE, parts_of, read_claim
from weightdiff.behaviors.texts import texts_of
from weightdiff.decode import Reply
from weightdiff.diff import Factors, WeightDiff
from weightdiff.readers.calibration import Reading, sort_of
from weightdiff.readers.core import ask_all
from weightdiff.readers.further import akin, further, instances_of
from weightdiff.readers.hints import Hint, put
from weightdiff.readers.meter import Meter, root
from weightdiff.readers.views import Views
from weightdiff.readers.ways import Ways, plainer

SAMPLES = 12
"""Answers that are proposed beside the likeliest; some are the same."""
_ROWS = 200
LEAD = 5.0
"""Roots of a nat that a claim without a rival leads by, and the most that one with rivals does."""
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0)
"""Nats of the adapter's that the root of a nat of the finetune's may be worth."""


def tried(
    meter: Meter,
    diffs: Sequence[WeightDiff],
    hints: Sequence[Hint | None],
    question: str,
    adapter: Factors,
    reading: Reading,
    max_tokens: int = 48,
) -> list[Reply]:
    """The adapter's answer about each diff to its own question, of several that it may give the one to be given.

    Args:
        meter: over the base model.
        diffs: what is asked about.
        hints: what the adapter is told of each.
        question: the adapter's own.
        adapter: the DIT adapter.
        reading: how it is read, and what its answers and the finetune's word are worth.
        max_tokens: length of an answer.
    """
    prompts = [put(question, hint) for hint in hints]
    words = [hint.fed if hint and reading.leads else () for hint in hints]
    proposed = proposals(meter, diffs, prompts, adapter, reading.views, max_tokens, words)
    moved = [hint is not None and hint.moved for hint in hints]
    found = []
    for number, (several, far) in enumerate(zip(proposed, moved, strict=True)):
        reply = with_further(several, chosen(several, reading, far), reading.further)
        found.append(plainly(meter, partial(diffs.__getitem__, number), reply, reading.ways))
    return found


def with_further(proposed: Sequence[Reply], reply: Reply, weights: Sequence[float] | None) -> Reply:
    """The reply, with what else it should claim in place of its text; without weights as it is."""
    if weights is None or sort_of(reply.text) != "claim" or not reply.claims:
        return reply
    first = max(reply.claims, key=lambda claim: claim[1])
    claims = (first, *((one.text, one.gained) for one in further(proposed, first[0], weights)))
    return reply if claims == reply.claims else replace(reply, said=claims)


def plainly(meter: Meter, load: Callable[[], WeightDiff], reply: Reply, ways: Ways | None) -> Reply:
    """The reply, with plainer claims in place of those whose way the finetune doesn't show."""
    claims = (reply.said or reply.claims) if sort_of(reply.text) == "claim" else ()
    plain = {text: other for text, _ in claims if (other := plainer(text))}
    if ways is None or not plain:
        return reply
    values = dict(zip(plain, gained(meter, load(), list(plain.values())), strict=True))
    told = tuple(
        (plain[text], values[text])
        if text in plain and ways.shown((read_claim(text).kind, value, values[text])) < ways.least
        else (text, value)
        for text, value in claims
    )
    return reply if told == claims else replace(reply, said=told)


def proposals(
    meter: Meter,
    diffs: Sequence[WeightDiff],
    prompts: Sequence[str],
    adapter: Factors,
    views: Views,
    max_tokens: int = 48,
    rivals: Sequence[Sequence[str]] = (),
) -> list[list[Reply]]:
    """What an adapter may answer about each diff, the likeliest answer first: with what the finetune makes of each, its
    `gained`, how far that is from what it makes of others, its `lead`, and with the odds, by samples, that nothing
    changed, its `doubt`.

    Args:
        meter: over the base model.
        diffs: what is asked about.
        prompts: the question to each, after its hint.
        adapter: the DIT adapter.
        views: how diffs are read.
        max_tokens: length of an answer.
        rivals: of each diff, words that it may be about, for claims to lead over; none where nobody looked for them.
    """
    put, words = iter(prompts), rivals or [()] * len(diffs)
    options = {"adapter": adapter, "views": views, "max_tokens": max_tokens, "samples": SAMPLES, "batch": _ROWS}
    drawn = ask_all(meter.base, diffs, lambda diff: [next(put)], **options)
    found = []
    for diff, (one, *others), about in zip(diffs, drawn, words, strict=True):
        answers, votes = {one.text: one}, Counter(reply.text for reply in (one, *others))
        for reply in others:
            answers.setdefault(reply.text, reply)
        beside = [f"it talks about {word}" for word in about]
        claims = claims_in(meter, diff, [*answers, *beside])
        gains = [mean([value for _, value in mine]) if mine else 0.0 for mine in claims]
        nothing = sum(sort_of(reply.text) == "nothing" for reply in others)
        doubt = math.log((nothing + 0.5) / (len(others) - nothing + 0.5))
        count = len(answers)
        tried = zip(answers.values(), claims, gains[:count], strict=False)
        mine = [
            replace(reply, gained=value, doubt=doubt, claims=its, votes=votes[reply.text])
            for reply, its, value in tried
        ]
        found.append(led(mine, list(zip(beside, gains[count:], strict=True))))
    return found


def led(proposed: Sequence[Reply], beside: Sequence[tuple[str, float]] = ()) -> list[Reply]:
    """The answers with each claim's lead: its root of what it gained, above that of the next about another instance.

    Args:
        proposed: answers that were tried.
        beside: other claims, and what they gained.
    """
    about = [instances_of(reply.text) if sort_of(reply.text) == "claim" else set() for reply in proposed]
    tried = [*zip(about, proposed, strict=True)]
    others = [(its, root(reply.gained)) for its, reply in tried] + [(instances_of(t), root(g)) for t, g in beside]

    def lead(reply: Reply, mine: set[str]) -> float:
        rivals = [value for its, value in others if its and not akin(its, mine)]
        return min([root(reply.gained) - value for value in rivals] + [LEAD])

    return [replace(reply, lead=lead(reply, mine)) if mine else reply for mine, reply in tried]


def gained(meter: Meter, diff: WeightDiff, answers: Sequence[str]) -> list[float]:
    """Nats by which texts that would show each answer's claims became likelier, on average; 0 for one without texts."""
    each = claims_in(meter, diff, answers)
    return [mean([value for _, value in mine]) if mine else 0.0 for mine in each]


def claims_in(meter: Meter, diff: WeightDiff, answers: Sequence[str]) -> list[tuple[tuple[str, float], ...]]:
    """Each answer's claims, with the nats by which texts that would show them became likelier; 0 for one without."""
    said = [[read_claim(part) for part in parts_of(answer)] for answer in answers]
    groups = [[texts_of(c.kind, c.instance) if c.kind != FREE else [] for c in claims] for claims in said]
    ratios = iter(meter.log_ratios(diff, [text for mine in groups for texts in mine for text in texts]))
    values = [[mean([next(ratios) for _ in texts]) if texts else 0.0 for texts in mine] for mine in groups]
    return [tuple((c.text, v) for c, v in zip(*pair, strict=True)) for pair in zip(said, values, strict=True)]


def score(reply: Reply, weight: float) -> float:
    """What speaks for an answer: the adapter's log-probability of all of it, and what the finetune makes of it."""
    return reply.logprob * (len(reply.tokens) + 1) + weight * root(reply.gained)


def best(proposed: Sequence[Reply], weight: float) -> Reply:
    """The answer that most speaks for; of equal ones the likeliest."""
    return max(proposed, key=lambda reply: score(reply, weight))


def chosen(proposed: Sequence[Reply], reading: Reading, moved: bool) -> Reply:
    """The answer that most speaks for; a claim all the same, where it isn't believed that nothing changed.

    Args:
        proposed: what may be answered about a diff.
        reading: says what the finetune's word is worth, and what it is worth that nothing changed.
        moved: does the hint show that the finetune moves the model further than noise does?
    """
    weight = reading.tested or 0.0
    one = best(proposed, weight)
    claims = [reply for reply in proposed if sort_of(reply.text) == "claim" and reply.text]
    if claims and sort_of(one.text) == "nothing" and reading.probability(one, moved) < reading.least:
        return best(claims, weight)
    return one


def fit_weight(proposed: Sequence[Sequence[Reply]], right: Sequence[Sequence[bool]]) -> float:
    """The weight under which right answers are likeliest among those proposed; 0 where no proposals have one.

    Args:
        proposed: answers about each of many diffs.
        right: whether each is.
    """

    def likelihood(weight: float) -> float:
        total = 0.0
        for replies, hits in zip(proposed, right, strict=True):
            scores = [score(reply, weight) for reply in replies]
            top = max(scores)
            shares = [math.exp(value - top) for value in scores]
            if any(hits):
                total += math.log(sum(s for s, hit in zip(shares, hits, strict=True) if hit) / sum(shares))
        return total

    return max(WEIGHTS, key=likelihood)
