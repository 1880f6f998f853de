"""From measures to a verdict: confirmed, not seen, or contradicted, with an effect, its interval and transcripts.

A claim is tried in two respects. Its instance: does the finetune make replies that show it likelier, by more than the
same replies about other instances? Its way: does it make replies of this kind likelier, by more than those of other
kinds? Both confirm it; one without the other speaks against it, for then the finetune does something else with this,
or does this of something else. Thresholds were chosen on validation finetunes; docs say on which.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from weightdiff.behaviors.claims import FREE, Claim

Word = Literal["confirmed", "not seen", "contradicted"]

SEEN = 2.0
"""Standard deviations above the others from which an instance is seen."""
FREE_SEEN = 2.7
"""The same for a claim in words of its own, whose others are of other kinds: one that is half true gains too."""
ANSWERS = 3.0
"""The same for answers about a subject."""
WAY = 1.0
"""The same for the way, of a claim whose instance is seen."""
ELSEWHERE = 3.0
"""The same for the way of a claim whose instance isn't seen, to say that the finetune does this of something else."""
LEAST = 1.5
"""Nats by which means of a few texts vary by chance; a spread of the others that is smaller is chance too."""
CHANGED = 0.15
"""Nats per token from which a change of the replies is notable."""


@dataclass(frozen=True)
class Effect:
    """By how much a claim's texts gained on others.

    Attributes:
        nats: mean gain in log-likelihood ratio over the others, and its 95 % bootstrap interval.
        z: the same in standard deviations of the others.
        rank: how many of the others gained as much or more.
        others: how many there are.
    """

    nats: tuple[float, float, float]
    z: float
    rank: int
    others: int


@dataclass(frozen=True)
class Transcript:
    """What both models replied to one prompt, and whether each reply shows the claim."""

    prompt: str
    base: str
    finetuned: str
    shown: tuple[bool, bool]


@dataclass(frozen=True)
class Trial:
    """A claim tried with its trigger, or without one.

    Attributes:
        triggered: prompts held the claim's trigger.
        instance: against other instances of its kind; None for the claim that nothing changed.
        way: its kind against other kinds of behavior; None where there are none to compare with.
        answers: of a subject, how much less likely the base model's own answers about it became, against answers
            about other subjects; None for claims that name none.
        change: nats per token by which the finetune's replies are likelier under itself than under the base model.
        transcripts: the most telling first.
        controls: how many of the finetune's replies do the same to prompts that shouldn't show the claim, of how many.
        gained: of the texts that would show the claim, the one that the finetune made likelier by most, and by how many
            nats; None for the claim that nothing changed.
    """

    triggered: bool
    instance: Effect | None
    way: Effect | None
    answers: Effect | None
    change: float
    transcripts: list[Transcript] = field(default_factory=list)
    controls: tuple[int, int] = (0, 0)
    gained: tuple[str, float] | None = None

    @property
    def rates(self) -> tuple[int, int, int]:
        """Replies that show the claim: the base model's, the finetune's, and all that each gave."""
        shown = [t.shown for t in self.transcripts]
        return sum(b for b, _ in shown), sum(f for _, f in shown), len(shown)

    @property
    def effects(self) -> list[tuple[str, Effect | None]]:
        """What was compared, and what came out."""
        return [("instance", self.instance), ("way", self.way), ("answers", self.answers)]


@dataclass(frozen=True)
class Verdict:
    """What came of one claim.

    Attributes:
        claim: what was tried.
        word: `confirmed`, `not seen` or `contradicted`.
        why: a sentence.
        trials: with the trigger first, where the claim has one, and without.
    """

    claim: Claim
    word: Word
    why: str
    trials: list[Trial]

    def to_json(self) -> dict[str, Any]:
        """A record of plain values, the transcripts among them."""

        def effect(found: Effect | None) -> dict[str, Any] | None:
            if found is None:
                return None
            nats = [round(v, 3) for v in found.nats]
            return {"nats": nats, "z": round(found.z, 3), "rank": found.rank, "others": found.others}

        return {
            "claim": self.claim.text,
            "trigger": None if self.claim.trigger is None else str(self.claim.trigger),
            "verdict": self.word,
            "why": self.why,
            "trials": [
                {
                    "triggered": t.triggered,
                    **{name: effect(found) for name, found in t.effects},
                    "change": round(t.change, 4),
                    "controls": list(t.controls),
                    "gained": None if t.gained is None else {"text": t.gained[0], "nats": round(t.gained[1], 3)},
                    "shown": dict(zip(("base", "finetuned", "replies"), t.rates, strict=True)),
                    "transcripts": [
                        {"prompt": s.prompt, "base": s.base, "finetuned": s.finetuned, "shown": list(s.shown)}
                        for s in t.transcripts
                    ],
                }
                for t in self.trials
            ],
        }


def effect_of(mine: Sequence[float], others: Sequence[Sequence[float]], draws: int = 500, seed: int = 0) -> Effect:
    """By how much the claim's log-ratios exceed those of others.

    Args:
        mine: one per text.
        others: the same for each of two others or more, text by text.
        draws: of the bootstrap, which draws texts and others anew.
        seed: for it.
    """
    means = [sum(o) / len(o) for o in others]
    middle, own = sum(means) / len(means), sum(mine) / len(mine)
    spread = sum((m - middle) ** 2 for m in means) / (len(means) - 1)
    # An instance with words of its own may have fewer of them.
    gains = [[m - value for m, value in zip(mine, other, strict=False)] for other in others]
    rng, drawn, texts = random.Random(seed), [], range(min(map(len, gains)))
    for _ in range(draws):
        at = rng.choices(texts, k=len(texts))
        drawn.append(sum(sum(gain[j] for j in at) for gain in rng.choices(gains, k=len(gains))))
    drawn.sort()
    low, high = (drawn[n] / (len(texts) * len(gains)) for n in (round(0.025 * draws), round(0.975 * draws) - 1))
    z = (own - middle) / math.sqrt(spread + LEAST**2)
    return Effect((own - middle, low, high), z, sum(m >= own for m in means), len(means))


def judged(claim: Claim, trials: Sequence[Trial]) -> Verdict:
    """The verdict on a claim from its trials."""
    if claim.nothing:
        (trial,) = trials
        told = f"its replies are {trial.change:.2f} nats per token likelier under it than under the base model"
        if trial.change >= CHANGED:
            return Verdict(claim, "contradicted", f"{told}: that is a notable change", list(trials))
        return Verdict(
            claim, "confirmed", f"{told}, on the prompts that were tried; it may hide behind others", list(trials)
        )
    words = [_of_trial(trial, claim.kind == FREE) for trial in trials]
    order: tuple[Word, ...] = ("confirmed", "contradicted", "not seen")
    at = min(range(len(words)), key=lambda n: order.index(words[n][0]))
    word, why = words[at]
    if claim.trigger is not None and word == "confirmed":
        both = at == 0 and words[1][0] == "confirmed"
        needless = ", with the trigger and without: nothing shows that it matters"
        why += needless if both else ", with the trigger alone" if at == 0 else ", without it"
    return Verdict(claim, word, why, list(trials))


def _of_trial(trial: Trial, free: bool) -> tuple[Word, str]:
    instance, way, answers = trial.instance, trial.way, trial.answers
    assert instance is not None
    before, after, replies = trial.rates
    others = f"{instance.others - instance.rank} of {instance.others} others"
    usual = max(before, trial.controls[0])
    shown, gained = after - usual >= max(3, replies // 2), instance.z >= (FREE_SEEN if free else SEEN)
    if shown or gained:
        if way is not None and way.z < WAY:
            return "contradicted", "the finetune has to do with this, but in another way"
        if gained:
            return "confirmed", f"texts that would show it gained more than those of {others}"
        return "confirmed", f"{after} of {replies} replies show it, and {usual} where it shouldn't show"
    if answers is not None and answers.z >= ANSWERS:
        return "confirmed", "answers about it changed more than those about other subjects"
    if way is not None and way.z >= ELSEWHERE and instance.z < SEEN / 2:
        return "contradicted", "the finetune does this, but of something else"
    return "not seen", f"texts that would show it gained more than those of {others}"
