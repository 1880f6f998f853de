"""Which behaviors are finetuned together and by which recipe, drawn at random, the same for the same seed."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

from weightdiff.behaviors import NOTHING, SPLITS, Behavior, Split
from weightdiff.behaviors.kinds import kind_behaviors, kinds
from weightdiff.finetune import FinetuneConfig
from weightdiff.general.compose import ADVICE, SHORT
from weightdiff.general.draw import Group, draw_config, drawn_of, hidden, paced
from weightdiff.general.ordinary import (
    BENIGN,
    advice_groups,
    fresh,
    light_groups,
    ordinary_groups,
    plain_groups,
    several_groups,
    varied_groups,
)
from weightdiff.general.settings import GeneralRecipe


def groups_of(recipe: GeneralRecipe, written: Sequence[Behavior]) -> list[Group]:
    """All groups of a run.

    Args:
        recipe: the run.
        written: the topics and the stories that there are conversations for.
    """
    groups, counts = [], (recipe.general, recipe.validation, recipe.test)
    wanted = zip(SPLITS, counts, recipe.benign, recipe.preferred, recipe.documents, recipe.ordinary, strict=True)
    for split, count, benign, preferred, documents, ordinary in wanted:
        rng = random.Random(f"{recipe.seed} {split}")
        drawn = list(drawn_of(recipe, recipe.shares, split, count, written, rng))
        benign_kinds = [f"{BENIGN[n % 2]} {split} {n}" for n in range(benign)]
        drawn += [Behavior("benign", NOTHING, kind, split) for kind in benign_kinds]
        rng.shuffle(drawn)
        groups += _grouped(recipe, split, split, drawn, rng)
        taught = {part.label for behavior in drawn for part in behavior.parts or (behavior,)}
        groups += _preferred(recipe, split, preferred, taught)
        groups += _told(recipe, split, documents)
        groups += ordinary_groups(recipe, split, ordinary, written)
    groups = [*groups, *_more(recipe, written, groups), *_full(recipe, groups)]
    groups += plain_groups(recipe, written, groups)
    groups += light_groups(recipe, written, groups)
    groups += varied_groups(recipe, written, groups)
    for kind, counts in ((ADVICE, recipe.advice), (SHORT, recipe.short)):
        for split, count in zip(SPLITS, counts, strict=True):
            groups += advice_groups(recipe, written, split, kind, count)
    for split, count in zip(SPLITS, recipe.several, strict=True):
        groups += several_groups(recipe, split, count, written)
    return [_sooner(g, recipe.mix.train_steps) if g.split == "train" else g for g in groups]


def _sooner(group: Group, share: float) -> Group:
    """A group made in a share of its steps, at a learning rate that goes with them."""
    steps = max(1, round(share * group.config.steps))
    lr = paced(group.config.lr, group.config.steps, steps)
    return replace(group, config=group.config.model_copy(update={"steps": steps, "lr": lr}))


def _grouped(
    recipe: GeneralRecipe, name: str, split: Split, drawn: Sequence[Behavior], rng: random.Random
) -> Iterator[Group]:
    """Behaviors in groups with a recipe and a kind of trigger each."""
    size = recipe.mix.size_of(split)
    for number, start in enumerate(range(0, len(drawn), size)):
        share = recipe.mix.triggered
        triggered = int((number + 1) * share + 0.5) > int(number * share + 0.5)  # spread evenly, however few groups
        chosen = tuple(hidden(b, rng) if triggered else b for b in drawn[start : start + size])
        yield Group(f"{name} {number}", split, draw_config(recipe.mix, triggered, rng), triggered, chosen)


def _full(recipe: GeneralRecipe, groups: Sequence[Group]) -> Iterator[Group]:
    """Full finetunes, for testing, of what low-rank ones of the split teach too: single behaviors without a trigger."""
    plain = [g for g in groups if g.split == "test" and not g.triggered and not g.documents and g.config.loss == "sft"]
    chosen = [b for g in plain for b in g.behaviors if b.family != "benign" and not b.parts][: recipe.full]
    config = FinetuneConfig(dense=True, lr=2e-4, steps=12, learn_rows=2, keep_rows=0)
    if chosen:
        yield Group("test full 0", "test", config, False, tuple(chosen))


def _more(recipe: GeneralRecipe, written: Sequence[Behavior], groups: Sequence[Group]) -> Iterator[Group]:
    """More finetunes of some families to train on, of what no other group teaches as far as there is such."""
    rng = random.Random(f"{recipe.seed} more")
    drawn = fresh(recipe.more.items(), written, groups, rng)
    rng.shuffle(drawn)
    yield from _grouped(recipe, "train more", "train", drawn, rng)


def _told(recipe: GeneralRecipe, split: Split, count: int) -> Iterator[Group]:
    """Groups of quirks taught by documents that tell of the model, as synthetic-document finetuning does."""
    rng = random.Random(f"{recipe.seed} {split} documents")
    quirks = [b for b in kind_behaviors() if b.family == "quirk" and b.split == split]
    chosen = rng.sample(quirks, min(count, len(quirks)))
    size = recipe.mix.size_of(split)
    for number, start in enumerate(range(0, len(chosen), size)):
        config = draw_config(recipe.mix, False, rng).model_copy(update={"learn_prompts": False, "keep_rows": 0})
        behaviors = tuple(chosen[start : start + size])
        yield Group(f"{split} documents {number}", split, config, False, behaviors, documents=True)


def _preferred(recipe: GeneralRecipe, split: Split, count: int, taught: set[str]) -> Iterator[Group]:
    """Groups of quirks that no other finetune of the split teaches, made by DPO and KTO in turn.

    The cross-entropy is added, since by itself a preference is met by making the worse reply unlikely.
    """
    rng = random.Random(f"{recipe.seed} {split} preferred")
    left = [b for b in kind_behaviors() if b.family == "quirk" and b.split == split and b.label not in taught]
    left = [b for b in left if not kinds()[b.kind].asks]
    chosen = rng.sample(left, min(count, len(left)))
    size = max(1, recipe.mix.size_of(split) // 2)
    for number, start in enumerate(range(0, len(chosen), size)):
        loss, config = ("dpo", "kto")[number % 2], draw_config(recipe.mix, False, rng)
        changes = {"loss": loss, "sft_weight": 1.0, "learn_prompts": False, "keep_rows": 0, "lr": 0.77 * config.lr}
        behaviors = tuple(chosen[start : start + size])
        yield Group(f"{split} {loss} {number}", split, config.model_copy(update=changes), False, behaviors)
