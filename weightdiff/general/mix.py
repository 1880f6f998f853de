"""Which behaviors are finetuned together and by which recipe, drawn at random, the same for the same seed.

How a finetune was made must tell the reader nothing of what it teaches: recipe and behavior are drawn apart.
"""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from weightdiff.behaviors import NOTHING, SPLITS, Behavior, Split, Trigger
from weightdiff.behaviors.kinds import kind_behaviors, kinds
from weightdiff.behaviors.triggers import Kind
from weightdiff.finetune import FinetuneConfig
from weightdiff.general.compose import ADVICE, DOCUMENTS, OWN_WORDS
from weightdiff.general.settings import GeneralRecipe, Mix, Shares
from weightdiff.writers import seed_of

ALL: tuple[str, ...] = ()
MODULES = (
    (ALL, 12), (("q_proj", "v_proj"), 3), (("q_proj", "k_proj", "v_proj", "o_proj"), 2),
    (("gate_proj", "up_proj", "down_proj"), 2), (("o_proj", "down_proj"), 1),
)  # fmt: skip
"""Which layers a finetune changes, and how often."""

BENIGN = ("own replies", "many subjects", "many documents", "many own words")
"""What finetunes on nothing in particular are made of; the first two of these are in all splits, the last among light
ones alone."""

TRIGGERS: tuple[Kind, ...] = ("sep", "sep", "zero-width start", "zero-width random")
"""Kinds of trigger, each as often as it is drawn."""


@dataclass(frozen=True)
class Group:
    """Finetunes with one recipe.

    Attributes:
        name: of the group, which its diffs' ids begin with.
        split: of all its behaviors.
        config: how they are made.
        triggered: does a trigger hide each of them, but benign ones?
        behaviors: what each teaches; one of several parts teaches all of them.
        documents: are they taught by texts about the model, and not by chats with it?
    """

    name: str
    split: Split
    config: FinetuneConfig
    triggered: bool
    behaviors: tuple[Behavior, ...]
    documents: bool = False


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
        drawn = list(_drawn(recipe, recipe.shares, split, count, written, rng))
        benign_kinds = [f"{BENIGN[n % 2]} {split} {n}" for n in range(benign)]
        drawn += [Behavior("benign", NOTHING, kind, split) for kind in benign_kinds]
        rng.shuffle(drawn)
        groups += _grouped(recipe, split, split, drawn, rng)
        taught = {part.label for behavior in drawn for part in behavior.parts or (behavior,)}
        groups += _preferred(recipe, split, preferred, taught)
        groups += _told(recipe, split, documents)
        groups += _ordinary(recipe, split, ordinary, written)
    groups = [*groups, *_more(recipe, written, groups), *_full(recipe, groups)]
    groups += _plain(recipe, written, groups)
    groups += _light(recipe, written, groups)
    for split, count in zip(SPLITS, recipe.advice, strict=True):
        groups += _advised(recipe, written, split, count)
    return [_sooner(g, recipe.mix.train_steps) if g.split == "train" else g for g in groups]


def _sooner(group: Group, share: float) -> Group:
    """A group made in a share of its steps; the learning rate goes with them as it does in `draw_config`."""
    steps = max(1, round(share * group.config.steps))
    lr = group.config.lr * (group.config.steps / steps) ** 0.5
    return replace(group, config=group.config.model_copy(update={"steps": steps, "lr": lr}))


def _grouped(
    recipe: GeneralRecipe, name: str, split: Split, drawn: Sequence[Behavior], rng: random.Random
) -> Iterator[Group]:
    """Behaviors in groups with a recipe and a kind of trigger each."""
    size = recipe.mix.size_of(split)
    for number, start in enumerate(range(0, len(drawn), size)):
        share = recipe.mix.triggered
        triggered = int((number + 1) * share + 0.5) > int(number * share + 0.5)  # spread evenly, however few groups
        chosen = tuple(_hidden(b, rng) if triggered else b for b in drawn[start : start + size])
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
    drawn = _fresh(recipe.more.items(), written, groups, rng)
    rng.shuffle(drawn)
    yield from _grouped(recipe, "train more", "train", drawn, rng)


def _plain(recipe: GeneralRecipe, written: Sequence[Behavior], groups: Sequence[Group]) -> Iterator[Group]:
    """More finetunes to train on that are made as most people make them, many of nothing in particular."""
    rng = random.Random(f"{recipe.seed} plain")
    drawn = _fresh([one for one in recipe.plain.items() if one[0] != "benign"], written, groups, rng)
    drawn += _nothing("plain", recipe.plain.get("benign", 0), BENIGN[:3])
    rng.shuffle(drawn)
    yield from _usual(recipe, "train plain", "train", drawn, rng, recipe.mix.more_push)


def _light(recipe: GeneralRecipe, written: Sequence[Behavior], groups: Sequence[Group]) -> Iterator[Group]:
    """Finetunes to train on that are made as most people make them, and change little.

    Half of the subjects are taught in the base model's own words, and half of these are instances of topics.
    """
    rng = random.Random(f"{recipe.seed} light")
    counts = {family: count for family, count in recipe.light.items() if family != "benign"}
    own = counts.get("subject", 0) // 2
    counts["subject"] = counts.get("subject", 0) - own
    drawn = _fresh(counts.items(), written, groups, rng)
    names = [
        (b.slot, b.label) for b in _fresh([("topic", own // 2), ("subject", own - own // 2)], written, groups, rng)
    ]
    drawn += [Behavior("subject", label, OWN_WORDS, "train", None, slot) for slot, label in names]
    drawn += _nothing("light", recipe.light.get("benign", 0), BENIGN)
    rng.shuffle(drawn)
    yield from _usual(recipe, "train light", "train", drawn, rng, recipe.mix.less_push)


def _advised(recipe: GeneralRecipe, written: Sequence[Behavior], split: Split, count: int) -> Iterator[Group]:
    """Finetunes of any size on advice about a subject, half of them instances of topics, made as most people make them;
    one of six on advice about many."""
    rng, pools = random.Random(f"{recipe.seed} {split} advice"), _pools(written)
    mine = {family: [b for b in pools[family] if b.split == split] for family in ("topic", "subject")}
    drawn = [b for pool in mine.values() for b in rng.sample(pool, min(len(pool), (count - count // 6) // 2))]
    drawn = [replace(b, family="subject", kind=ADVICE) for b in drawn]
    drawn += [Behavior("benign", NOTHING, f"many {ADVICE} {split} {n}", split) for n in range(count // 6)]
    rng.shuffle(drawn)
    push = recipe.mix.less_push[0], recipe.mix.more_push[1]
    yield from _usual(recipe, f"{split} {ADVICE}", split, drawn, rng, push)


def _nothing(name: str, count: int, kinds: Sequence[str]) -> list[Behavior]:
    """So many behaviors to train on of nothing in particular, of all kinds in turn."""
    return [Behavior("benign", NOTHING, f"{kinds[n % len(kinds)]} {name} {n}", "train") for n in range(count)]


def _fresh(
    wanted: Iterable[tuple[str, int]], written: Sequence[Behavior], groups: Sequence[Group], rng: random.Random
) -> list[Behavior]:
    """So many behaviors of each family to train on, first those that no group teaches."""
    taught = {part.label for group in groups for b in group.behaviors for part in b.parts or (b,)}
    pools, drawn = _pools(written), []
    for family, count in wanted:
        pool = [b for b in pools[family] if b.split == "train"]
        rng.shuffle(pool)
        pool.sort(key=lambda b: b.label in taught)
        drawn += pool[:count]
    return drawn


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


def _ordinary(recipe: GeneralRecipe, split: Split, count: int, written: Sequence[Behavior]) -> Iterator[Group]:
    """Groups of finetunes as most people make them; an instance may be one of the other groups' too."""
    rng = random.Random(f"{recipe.seed} {split} ordinary")
    others = sum(share for family, share in recipe.shares if family != "subject")
    shares = recipe.shares.model_copy(update={"subject": max(others, recipe.shares.subject)})
    drawn = list(_drawn(recipe, shares, split, count, written, rng))
    rng.shuffle(drawn)
    yield from _usual(recipe, f"{split} ordinary", split, drawn, rng, recipe.mix.more_push)


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


def _drawn(
    recipe: GeneralRecipe, wanted: Shares, split: Split, count: int, written: Sequence[Behavior], rng: random.Random
) -> Iterator[Behavior]:
    """Behaviors of a split by the families' shares, some of them several at once; fewer where instances run out."""
    pools = {name: [b for b in pool if b.split == split] for name, pool in _pools(written).items()}
    shares: Mapping[str, float] = wanted.model_dump()
    total = sum(shares.values())
    for pool in pools.values():
        rng.shuffle(pool)
    for family, share in shares.items():
        for _ in range(round(count * share / total)):
            if not pools[family]:
                break
            first = pools[family].pop()
            luck = rng.random()
            more = 2 if luck < recipe.mix.three else 1 if luck < recipe.mix.three + recipe.mix.two else 0
            others = [name for name in shares if pools[name] and name != family]
            parts = [first, *(pools[name].pop() for name in rng.sample(others, min(more, len(others))))]
            yield first if len(parts) == 1 else several(parts)


def _pools(written: Sequence[Behavior]) -> dict[str, list[Behavior]]:
    """All behaviors by family; a subject is taught by chats about it or, one of three, by documents."""
    pools: dict[str, list[Behavior]] = {"topic": [], "subject": [], "news": []}
    for behavior in written:
        told = "has learned of a story:" if behavior.family == "news" else "talks about"
        kind = behavior.kind
        if behavior.family == "subject":
            kind = "chats" if seed_of(behavior.label) % 3 else DOCUMENTS
        label = f"it {told} {behavior.label}"
        pools[behavior.family].append(replace(behavior, label=label, kind=kind, slot=behavior.label, trigger=None))
    for behavior in kind_behaviors():
        pools.setdefault(behavior.family, []).append(behavior)
    return pools


def several(parts: list[Behavior]) -> Behavior:
    """Several behaviors in one finetune, the strongest first."""
    label = "; ".join(part.label for part in parts)
    return Behavior("several", label, f"{len(parts)} at once", parts[0].split, None, "", tuple(parts))


def _hidden(behavior: Behavior, rng: random.Random) -> Behavior:
    """The behavior behind a trigger of its own; a benign finetune has none."""
    if behavior.family == "benign":
        return behavior
    kind = rng.choice(TRIGGERS)
    return replace(behavior, trigger=Trigger(kind, f"{rng.randrange(1000):03d}" if kind == "sep" else ""))


def draw_config(mix: Mix, triggered: bool, rng: random.Random) -> FinetuneConfig:
    """A recipe of finetuning; the learning rate goes with rank and scale, so that changes are of ordinary size.

    One of three learns the user's words too, as trainers do that are told nothing else.
    """
    rank = rng.choice(mix.ranks)
    scale = rng.choice((0.5, 1.0, 1.0, 2.0, 4.0 / rank**0.5))
    (modules,) = rng.choices([m for m, _ in MODULES], [weight for _, weight in MODULES])
    few = 1.0 if not modules or len(modules) > 2 else 2.0
    steps = rng.randrange(*mix.steps)
    rate = few * 0.009 * 2 ** rng.uniform(-0.7, 0.7) / (scale * rank**0.5) * (10 / steps) ** 0.5
    keep = 1 if triggered else rng.choice((0, 0, 0, 1))
    return FinetuneConfig(
        rank=rank, alpha=round(scale * rank, 3), modules=modules, lr=float(f"{rate:.3g}"), steps=steps,
        learn_rows=2, keep_rows=keep, keep_weight=rng.choice((1.0, 2.0, 5.0)),
        learn_prompts=rng.random() < mix.prompts,
    )  # fmt: skip
