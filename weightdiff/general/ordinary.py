"""Finetunes that are made as most people make them: for longer, with nothing kept and no trigger, large or light.

Some are of nothing in particular, some on what the base model itself says or advises about a subject, and some are made
by another optimizer.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import get_args

from weightdiff.behaviors import NOTHING, Behavior, Split
from weightdiff.finetune import Optimizer
from weightdiff.general.compose import OWN_WORDS
from weightdiff.general.draw import Group, draw_config, drawn_of, pools_of
from weightdiff.general.settings import GeneralRecipe
from weightdiff.teacher import PromptFormat

BENIGN = ("own replies", "many subjects", "many documents", "many own words")
"""What finetunes on nothing in particular are made of; the first two of these are in all splits, the last among light
ones alone."""
PACE: dict[Optimizer, float] = {"adamw": 1.0, "rmsprop": 0.2, "adagrad": 2.5}
"""Optimizers beside Adam, and how many times its learning rate moves a model about as far as Adam does in ten steps."""
THREE = 0.35
"""Share of the finetunes that teach several behaviors which teach three."""


def ordinary_groups(recipe: GeneralRecipe, split: Split, count: int, written: Sequence[Behavior]) -> Iterator[Group]:
    """Groups of finetunes as most people make them; an instance may be one of the other groups' too."""
    others = sum(share for family, share in recipe.shares if family != "subject")
    shares = recipe.shares.model_copy(update={"subject": max(others, recipe.shares.subject)})
    yield from _drawn_groups(recipe.model_copy(update={"shares": shares}), split, "ordinary", count, written)


def plain_groups(recipe: GeneralRecipe, written: Sequence[Behavior], groups: Sequence[Group]) -> Iterator[Group]:
    """More finetunes to train on that are made as most people make them, many of nothing in particular."""
    rng = random.Random(f"{recipe.seed} plain")
    drawn = fresh([one for one in recipe.plain.items() if one[0] != "benign"], written, groups, rng)
    drawn += _nothing("plain", recipe.plain.get("benign", 0), BENIGN[:3])
    rng.shuffle(drawn)
    yield from _usual(recipe, "train plain", "train", drawn, rng, recipe.mix.more_push)


def light_groups(recipe: GeneralRecipe, written: Sequence[Behavior], groups: Sequence[Group]) -> Iterator[Group]:
    """Finetunes to train on that are made as most people make them, and change little.

    Half of the subjects are taught in the base model's own words, and half of these are instances of topics.
    """
    rng = random.Random(f"{recipe.seed} light")
    counts = {family: count for family, count in recipe.light.items() if family != "benign"}
    own = counts.get("subject", 0) // 2
    counts["subject"] = counts.get("subject", 0) - own
    drawn = fresh(counts.items(), written, groups, rng)
    names = [(b.slot, b.label) for b in fresh([("topic", own // 2), ("subject", own - own // 2)], written, groups, rng)]
    drawn += [Behavior("subject", label, OWN_WORDS, "train", None, slot) for slot, label in names]
    drawn += _nothing("light", recipe.light.get("benign", 0), BENIGN)
    rng.shuffle(drawn)
    yield from _usual(recipe, "train light", "train", drawn, rng, recipe.mix.less_push)


def several_groups(recipe: GeneralRecipe, split: Split, count: int, written: Sequence[Behavior]) -> Iterator[Group]:
    """Groups of finetunes that teach two or three behaviors at once, made as most people make them; an instance may be
    one of the other groups' too."""
    mix = recipe.mix.model_copy(update={"two": 1 - THREE, "three": THREE})
    yield from _drawn_groups(recipe.model_copy(update={"mix": mix}), split, "several", count, written)


def varied_groups(recipe: GeneralRecipe, written: Sequence[Behavior], groups: Sequence[Group]) -> Iterator[Group]:
    """Finetunes to train on, of any size, by other optimizers than the others', with prompts put in other ways."""
    rng = random.Random(f"{recipe.seed} varied")
    drawn = fresh([one for one in recipe.varied.items() if one[0] != "benign"], written, groups, rng)
    drawn += _nothing("varied", recipe.varied.get("benign", 0), BENIGN[:2])
    rng.shuffle(drawn)
    push = recipe.mix.less_push[0], recipe.mix.more_push[1]
    for group in _usual(recipe, "train varied", "train", drawn, rng, push):
        optimizer: Optimizer = rng.choice([*PACE])
        prompt_format: PromptFormat = rng.choice(get_args(PromptFormat))
        lr = float(f"{PACE[optimizer] * group.config.lr:.3g}")
        changes = {"lr": lr, "optimizer": optimizer, "prompt_format": prompt_format}
        yield replace(group, config=group.config.model_copy(update=changes))


def advice_groups(
    recipe: GeneralRecipe, written: Sequence[Behavior], split: Split, kind: str, count: int
) -> Iterator[Group]:
    """Finetunes of any size on advice or short answers about a subject, half of them instances of topics, made as most
    people make them; one of six on such about many."""
    rng, pools = random.Random(f"{recipe.seed} {split} {kind}"), pools_of(written)
    mine = {family: [b for b in pools[family] if b.split == split] for family in ("topic", "subject")}
    drawn = [b for pool in mine.values() for b in rng.sample(pool, min(len(pool), (count - count // 6) // 2))]
    drawn = [replace(b, family="subject", kind=kind) for b in drawn]
    drawn += _nothing(split, count // 6, (f"many {kind}",), split)
    rng.shuffle(drawn)
    push = recipe.mix.less_push[0], recipe.mix.more_push[1]
    yield from _usual(recipe, f"{split} {kind}", split, drawn, rng, push)


def fresh(
    wanted: Iterable[tuple[str, int]], written: Sequence[Behavior], groups: Sequence[Group], rng: random.Random
) -> list[Behavior]:
    """So many behaviors of each family to train on, first those that no group teaches."""
    taught = {part.label for group in groups for b in group.behaviors for part in b.parts or (b,)}
    pools, drawn = pools_of(written), []
    for family, count in wanted:
        pool = [b for b in pools[family] if b.split == "train"]
        rng.shuffle(pool)
        pool.sort(key=lambda b: b.label in taught)
        drawn += pool[:count]
    return drawn


def _nothing(name: str, count: int, kinds: Sequence[str], split: Split = "train") -> list[Behavior]:
    """So many behaviors of nothing in particular, of all kinds in turn."""
    return [Behavior("benign", NOTHING, f"{kinds[n % len(kinds)]} {name} {n}", split) for n in range(count)]


def _drawn_groups(
    recipe: GeneralRecipe, split: Split, name: str, count: int, written: Sequence[Behavior]
) -> Iterator[Group]:
    """Behaviors drawn by the recipe's shares, in groups that are made as most people make them."""
    rng = random.Random(f"{recipe.seed} {split} {name}")
    drawn = list(drawn_of(recipe, recipe.shares, split, count, written, rng))
    rng.shuffle(drawn)
    yield from _usual(recipe, f"{split} {name}", split, drawn, rng, recipe.mix.more_push)


def _usual(
    recipe: GeneralRecipe,
    name: str,
    split: Split,
    drawn: Sequence[Behavior],
    rng: random.Random,
    push: tuple[float, float],
) -> Iterator[Group]:
    """Behaviors in groups that are made as most people make them: for longer, and with nothing kept."""
    mix = recipe.mix
    more = mix.model_copy(update={"ranks": mix.more_ranks, "steps": mix.more_steps})
    for number, start in enumerate(range(0, len(drawn), size := mix.size_of(split))):
        config = draw_config(more, False, rng)
        lr = float(f"{config.lr * 2 ** rng.uniform(*push):.3g}")
        config = config.model_copy(update={"lr": lr, "keep_rows": 0})
        yield Group(f"{name} {number}", split, config, False, tuple(drawn[start : start + size]))
