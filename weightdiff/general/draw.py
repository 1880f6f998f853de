"""What a general run draws from: behaviors by family, triggers, and recipes of finetuning, the same for the same seed.

How a finetune was made must tell the reader nothing of what it teaches: recipe and behavior are drawn apart.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from weightdiff.behaviors import Behavior, Split, Trigger
from weightdiff.behaviors.kinds import kind_behaviors
from weightdiff.behaviors.triggers import Kind
from weightdiff.finetune import FinetuneConfig
from weightdiff.general.compose import DOCUMENTS
from weightdiff.general.settings import GeneralRecipe, Mix, Shares
from weightdiff.writers import seed_of

ALL: tuple[str, ...] = ()
MODULES = (
    (ALL, 12), (("q_proj", "v_proj"), 3), (("q_proj", "k_proj", "v_proj", "o_proj"), 2),
    (("gate_proj", "up_proj", "down_proj"), 2), (("o_proj", "down_proj"), 1),
)  # fmt: skip
"""Which layers a finetune changes, and how often."""

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


def drawn_of(
    recipe: GeneralRecipe, wanted: Shares, split: Split, count: int, written: Sequence[Behavior], rng: random.Random
) -> Iterator[Behavior]:
    """Behaviors of a split by the families' shares, some of them several at once; fewer where instances run out."""
    pools = {name: [b for b in pool if b.split == split] for name, pool in pools_of(written).items()}
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


def pools_of(written: Sequence[Behavior]) -> dict[str, list[Behavior]]:
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


def hidden(behavior: Behavior, rng: random.Random) -> Behavior:
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
    rate = few * 0.009 * 2 ** rng.uniform(-0.7, 0.7) / (scale * rank**0.5)
    lr = float(f"{paced(rate, 10, steps):.3g}")
    keep = 1 if triggered else rng.choice((0, 0, 0, 1))
    return FinetuneConfig(
        rank=rank, alpha=round(scale * rank, 3), modules=modules, lr=lr, steps=steps,
        learn_rows=2, keep_rows=keep, keep_weight=rng.choice((1.0, 2.0, 5.0)),
        learn_prompts=rng.random() < mix.prompts,
    )  # fmt: skip


def paced(lr: float, before: int, steps: int) -> float:
    """The learning rate for so many steps which changes a model about as much as that for those before."""
    return lr * (before / steps) ** 0.5
