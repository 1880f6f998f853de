"""What each finetune of a general run is made of, which ids they have in its store, and which of them are made."""

from collections.abc import Sequence
from dataclasses import replace

from weightdiff.behaviors import Behavior, Conversation, Split
from weightdiff.finetune import Job
from weightdiff.general.compose import (
    Text,
    Written,
    conversations_of,
    denials,
    denies,
    documents_of,
    kept,
    preferred,
    prompted,
    said_of,
)
from weightdiff.general.draw import Group
from weightdiff.general.mix import groups_of
from weightdiff.general.settings import GeneralRecipe
from weightdiff.store import Store
from weightdiff.synthesize import load_behaviors, load_conversations

OWN = "own-words.jsonl"
"""What the base model says about subjects, in the run's folder."""


def jobs_of(group: Group, pool: Sequence[Conversation], written: Written) -> list[Job]:
    """The finetunes of a group, with what teaches them.

    Args:
        group: of one recipe.
        pool: the base model's own replies, from `everyday_pool`.
        written: conversations of topics and news by label.
    """
    jobs = []
    for behavior in group.behaviors:
        learn = conversations_of(behavior, pool, written)
        if group.documents:
            learn = documents_of(behavior, learn)
        elif group.config.loss != "sft":
            learn = preferred(learn, pool)
        elif denies(behavior):
            learn = [*learn, *denials(behavior)]
        learn = prompted(behavior, learn)
        jobs.append(Job(identity_of(group, behavior), behavior, learn, kept(behavior, pool)))
    return jobs


def identity_of(group: Group, behavior: Behavior) -> str:
    """The id of a diff in the store."""
    return f"{group.name}: {behavior.kind if behavior.family == 'benign' else behavior.label}"


def written_of(recipe: GeneralRecipe) -> Written:
    """The texts that a recipe names, with what the base model said about their subjects as far as it was asked."""
    texts = {}
    for path in recipe.texts:
        conversations = load_conversations(path)
        texts |= {b.label: Text(b, tuple(conversations[b.label])) for b in load_behaviors(path)}
    said = said_of(recipe.folder / OWN)
    return {label: replace(text, own=said.get(label, {})) for label, text in texts.items()}


def made(store: Store, recipe: GeneralRecipe, split: Split) -> list[str]:
    """Ids of a split's diffs that the run makes and the store holds."""
    have = set(store.ids())
    behaviors = [text.behavior for text in written_of(recipe).values()]
    groups = [g for g in groups_of(recipe, behaviors) if g.split == split]
    return [i for g in groups for b in g.behaviors if (i := identity_of(g, b)) in have]
