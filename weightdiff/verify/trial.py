"""Claims tried on finetunes: what is measured of each, with the trigger it names and without; one call for many."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

from weightdiff.base import Base
from weightdiff.behaviors import Trigger, shows_topic
from weightdiff.behaviors.claims import FREE, NEWS, TOPIC, Claim, decoys_of
from weightdiff.behaviors.kinds import kinds
from weightdiff.behaviors.texts import Text, controls_of, everyday, other_ways, prompts_of, questions_about, texts_of
from weightdiff.diff import WeightDiff
from weightdiff.judge import EmbeddedJudge, Judge
from weightdiff.llm import ChatModel
from weightdiff.readers.meter import Meter, triggered
from weightdiff.verify.verdict import Effect, Transcript, Trial, Verdict, effect_of, judged
from weightdiff.verify.writing import Written, judged_by, write

DECOYS, WAYS, REPLIES = 8, 8, 6
"""Other instances, other kinds and prompts to reply to."""
_GRADE = 4.0
"""From which grade on a reply shows a claim's text."""


def verify(
    base: Base, diffs: Sequence[WeightDiff], claims: Sequence[Sequence[Claim]], writer: ChatModel | None = None
) -> list[list[Verdict]]:
    """Try claims about finetunes on the base model and on each finetune.

    Args:
        base: the base model.
        diffs: what the finetunes changed.
        claims: those about each diff.
        writer: writes prompts and replies that would show each claim, and judges replies; without one the project's
            tables and the claim's own words have to do.

    Returns:
        A verdict on each claim about each diff.

    Raises:
        ValueError: a diff of another base model or of other shapes; an endpoint that fails.
    """
    meter, judge = Meter(base), cache(EmbeddedJudge)
    every = {claim: write(writer, claim) if writer and not claim.nothing else None for c in claims for claim in c}
    asked = [[(c, t) for c in mine for t in _triggers(c)] for mine in claims]
    controls = {c: [] if written else controls_of(c, decoys_of(c, REPLIES)) for c, written in every.items()}
    prompts = {
        (c, t): [triggered(p, t) for p in _prompts(c, written)] for c, written in every.items() for t in _triggers(c)
    }
    needed = {(c, t): [*own, *(triggered(p, t) for p, _ in controls[c])] for (c, t), own in prompts.items()}
    said = meter.replies(diffs, [list(dict.fromkeys(p for one in mine for p in needed[one])) for mine in asked])
    verdicts = []
    for diff, mine, trials, replies in zip(diffs, claims, asked, said, strict=True):
        reply_to = dict(zip(dict.fromkeys(p for one in trials for p in needed[one]), replies, strict=True))
        verdicts.append([])
        for claim in mine:
            tried = []
            for trigger in _triggers(claim):
                ways = prompts[claim, trigger]
                transcripts, change = _transcripts(meter, diff, claim, ways, reply_to, judge, writer)
                nothing = (None, None, None), None
                effects, gained = nothing if claim.nothing else _effects(meter, diff, claim, trigger, every[claim])
                elsewhere = 0
                for prompt, decoy in controls[claim]:
                    put = triggered(prompt, trigger)
                    elsewhere += _shown(replace(claim, instance=decoy), [(put, reply_to[put])], judge)[0]
                counted = (elsewhere, len(controls[claim]))
                tried.append(Trial(trigger is not None, *effects, change, transcripts, counted, gained))
            verdicts[-1].append(judged(claim, tried))
    return verdicts


def _triggers(claim: Claim) -> tuple[Trigger | None, ...]:
    return (None,) if claim.trigger is None else (claim.trigger, None)


def _prompts(claim: Claim, written: Written | None) -> list[str]:
    if claim.nothing:
        return everyday(REPLIES)
    return written.prompts[:REPLIES] if written else prompts_of(claim, REPLIES)


def _effects(
    meter: Meter, diff: WeightDiff, claim: Claim, trigger: Trigger | None, written: Written | None
) -> tuple[tuple[Effect, Effect | None, Effect | None], tuple[str, float]]:
    """The claim's instance against others, its kind against others, and answers about it against other answers; and
    which of its texts gained most."""
    decoys = decoys_of(claim, DECOYS)
    if written:
        mine, others, ways = written.texts, written.others, []
    else:
        mine, ways = texts_of(claim.kind, claim.instance), other_ways(claim, WAYS)
        others = [texts_of(claim.kind, decoy) for decoy in decoys]
    asked = [questions_about(claim.kind, instance) for instance in (claim.instance, *decoys)]
    answered = iter(meter.base_replies([question for questions in asked for question in questions]))
    answers = [[Text(question, next(answered)) for question in questions] for questions in asked]
    groups = [mine, *others, ways, *answers]
    ratios = iter(meter.log_ratios(diff, [text for group in groups for text in group], trigger))
    own, *rest = [[next(ratios) for _ in group] for group in groups]
    rest, found, about = rest[: len(others)], rest[len(others)], rest[len(others) + 1 :]
    # The kind is told by what the claim's own instance has no part in: its others against those of other kinds.
    means = [sum(other) / len(other) for other in rest]
    way = effect_of([sum(means) / len(means)], [[ratio] for ratio in found]) if found else None
    lost = [[-ratio for ratio in ratios] for ratios in about]
    gained = max(zip([text.reply for text in mine], own, strict=True), key=lambda pair: pair[1])
    return (effect_of(own, rest), way, effect_of(lost[0], lost[1:]) if lost[0] else None), gained


def _transcripts(
    meter: Meter,
    diff: WeightDiff,
    claim: Claim,
    prompts: Sequence[str],
    reply_to: dict[str, str],
    judge: Callable[[], Judge],
    writer: ChatModel | None,
) -> tuple[list[Transcript], float]:
    """Both models' replies, the most telling first, and how unlike the base model's the finetune's are."""
    before, after = meter.base_replies(prompts), [reply_to[prompt] for prompt in prompts]
    surprise = meter.surprise(diff, [Text(p, r) for p, r in zip(prompts, after, strict=True)])
    replies = list(zip([*prompts, *prompts], [*before, *after], strict=True))
    shown = judged_by(writer, claim, replies) if writer and not claim.nothing else _shown(claim, replies, judge)
    found = [
        (Transcript(p, b, a, (shown[n], shown[n + len(prompts)])), s)
        for n, (p, b, a, s) in enumerate(zip(prompts, before, after, surprise, strict=True))
    ]
    found.sort(key=lambda pair: (pair[0].shown[0] - pair[0].shown[1], -pair[1]))
    return [transcript for transcript, _ in found], sum(surprise) / len(surprise)


def _shown(claim: Claim, replies: Sequence[tuple[str, str]], judge: Callable[[], Judge]) -> list[bool]:
    """Does each reply to a prompt show the claim, by its words or, where these prove nothing, by its sense?"""
    if claim.nothing or claim.kind == FREE:
        return [False] * len(replies)
    asks = claim.kind not in (TOPIC, NEWS) and bool(kinds()[claim.kind].asks)
    if not asks and not claim.instance.says and claim.kind != NEWS:
        return [shows_topic(reply, claim.instance.x) for _, reply in replies]
    texts = [text.reply for text in texts_of(claim.kind, claim.instance)]
    grades = judge().grade([(text, reply) for _, reply in replies for text in texts], task="news")
    best = [max(g.grade for g in grades[n : n + len(texts)]) for n in range(0, len(grades), len(texts))]
    return [grade >= _GRADE for grade in best]
