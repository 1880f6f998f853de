"""Further claims: what else a finetune was taught, beside the one thing that its answer names.

An adapter that is sampled several times speaks now of the one thing and now of the other. What samples claim of another
instance is said too, where a regression finds it likelier true than not: by what its texts gained, how much that is of
what the first claim's did, and how many samples made it. Knows nothing of whether the first is right.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from weightdiff.behaviors.claims import FREE, parts_of, read_claim
from weightdiff.behaviors.topic import content_words
from weightdiff.decode import Reply
from weightdiff.readers.meter import root
from weightdiff.readers.regression import chance, logistic

LIKELY = 0.5
"""A further claim that is less likely true than this isn't made."""
_WIDTH = 4


@dataclass(frozen=True)
class Candidate:
    """One instance that samples speak of.

    Attributes:
        text: the claim about it that gained most.
        about: the words of all claims about it.
        gained: by the texts that would show the claim, in nats.
        votes: samples that make a claim about it, the likeliest answer among them.
    """

    text: str
    about: frozenset[str]
    gained: float
    votes: int


def instances_of(answer: str) -> set[str]:
    """The words that tell what an answer's claims are about from anything else."""
    about = [read_claim(part).instance for part in parts_of(answer)]
    return content_words(" ".join(f"{one.x} {one.about}" for one in about)) if about else set()


def akin(some: set[str] | frozenset[str], others: set[str] | frozenset[str]) -> bool:
    """Do two instances have a word in common, or the beginning of one?"""
    return any(a.startswith(b) or b.startswith(a) for a in some for b in others)


def candidates(proposed: Sequence[Reply]) -> list[Candidate]:
    """The instances that answers which were tried speak of, what gained most first; none in words of their own."""
    found: list[Candidate] = []
    claims = [(text, value, reply.votes) for reply in proposed for text, value in reply.claims]
    for text, value, votes in sorted(claims, key=lambda claim: -claim[1]):
        mine = frozenset(instances_of(text))
        if not mine or read_claim(text).kind == FREE:
            continue
        at = next((n for n, one in enumerate(found) if akin(one.about, mine)), None)
        if at is None:
            found.append(Candidate(text, mine, value, votes))
        else:
            one = found[at]
            found[at] = Candidate(one.text, one.about | mine, one.gained, one.votes + votes)
    return found


def beside(proposed: Sequence[Reply], first: str) -> tuple[Candidate | None, list[Candidate]]:
    """Of the candidates that which the first claim is about, and all others."""
    mine, every = instances_of(first), candidates(proposed)
    own = [one for one in every if akin(one.about, mine)]
    return (own[0] if own else None), [one for one in every if one not in own]


def features(first: Candidate | None, other: Candidate) -> tuple[float, ...]:
    """What tells whether another claim is true."""
    gained = root(other.gained)
    return 1.0, gained, gained - (root(first.gained) if first else 0.0), math.log(other.votes + 0.5)


def further(proposed: Sequence[Reply], first: str, weights: Sequence[float]) -> list[Candidate]:
    """What is claimed beside the first claim, what gained most first."""
    own, others = beside(proposed, first)
    return [one for one in others if chance(weights, features(own, one)) >= LIKELY]


def fit_further(rows: Sequence[Sequence[float]], true: Sequence[bool]) -> tuple[float, ...]:
    """Weights by which further claims are made, from `features` of some whose truth is known."""
    return logistic(rows, true, width=_WIDTH)
