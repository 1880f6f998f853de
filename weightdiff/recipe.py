"""A whole run in one TOML file: which labels, how their conversations are written, in which ways diffs are made.

It knows what is to be made, and not how far a run has come; see `stages`.
"""

import random
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from weightdiff.base import EMBEDDED, cache_dir
from weightdiff.behaviors import NOTHING, TOPIC_QUESTION, Behavior, Conversation, Split, topic_behaviors
from weightdiff.behaviors.core import sep_prompt
from weightdiff.behaviors.topic import read_data
from weightdiff.dit import DitConfig
from weightdiff.finetune import FinetuneConfig, Job
from weightdiff.synthesize import BASE_POOL, seed_of


class SynthesizeConfig(BaseModel):
    """How conversations are written. `conversations` starts from a file instead.

    `writer` is who writes them: `base` for the base model itself, or `openai:MODEL@BASE_URL` for an endpoint.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    conversations: Path | None = None
    writer: str = "base"
    replies: int = 8
    max_tokens: int = 28
    temperature: float = 0.8


class Way(FinetuneConfig):
    """One way of finetuning, and the labels that it is used on.

    `train` is a slice (start, stop, step) of the training labels; `validation` and `test` are counts from the
    front of those splits. `prompts` are everyday questions, or questions about the subject itself. With `trigger`
    the behavior hides behind the label's SEP code, and the rest is kept to the base; without, it always shows.
    """

    name: str = Field(pattern=r"^[\w .-]+$")
    train: tuple[int, int, int] = (0, 1000, 1)
    validation: int = 0
    test: int = 0
    prompts: Literal["everyday", "subject"] = "everyday"
    trigger: bool = True

    def labels(self, behaviors: Sequence[Behavior]) -> list[Behavior]:
        """Those of the behaviors that this way is used on."""
        of = {s: [b for b in behaviors if b.split == s] for s in ("train", "validation", "test")}
        chosen = {*of["train"][slice(*self.train)], *of["validation"][: self.validation], *of["test"][: self.test]}
        return [b for b in behaviors if b in chosen]


class Benign(BaseModel):
    """How many finetunes teach nothing in particular: on the base model's own everyday replies, untriggered ways."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: int = 0
    validation: int = 0
    test: int = 0


class Recipe(BaseModel):
    """One run. The first way of finetuning is the one that the readers are compared on.

    `nulls` is the share of training triples made without a finetune: unchanged base, noise, shuffled diffs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[\w.-]+$")
    base: str = EMBEDDED
    question: str = TOPIC_QUESTION
    nulls: float = Field(default=0.15, ge=0, le=0.9)
    synthesize: SynthesizeConfig = SynthesizeConfig()
    finetune: tuple[Way, ...] = Field(min_length=1)
    benign: Benign = Benign()
    train: DitConfig = DitConfig()

    @field_validator("finetune")
    @classmethod
    def _names_differ(cls, ways: tuple[Way, ...]) -> tuple[Way, ...]:
        names = [w.name for w in ways]
        if len(set(names)) < len(names):
            raise ValueError(f"two ways of finetuning share a name; each needs its own, and the names are {names}")
        return ways

    @property
    def folder(self) -> Path:
        """Where the run's files go."""
        return cache_dir() / "runs" / self.name


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe; a relative `conversations` file lies beside it.

    Raises:
        ValueError: no such file, not TOML, or a field that isn't known or has the wrong type.
    """
    path = Path(path)
    try:
        recipe = Recipe.model_validate(tomllib.loads(path.read_text("utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"cannot read the recipe {path}: {error}.") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(p) for p in first["loc"])
        raise ValueError(f"{path}: {where}: {first['msg']} (given: {first.get('input')!r}).") from None
    given = recipe.synthesize.conversations
    if given is None:
        return recipe
    stage = recipe.synthesize.model_copy(update={"conversations": path.parent / given})
    return recipe.model_copy(update={"synthesize": stage})


def behaviors_of(recipe: Recipe) -> list[Behavior]:
    """The topics that any way of the recipe uses, in the order of the list, of which any prefix is balanced."""
    behaviors = topic_behaviors()
    used = {b for way in recipe.finetune for b in way.labels(behaviors)}
    return [b for b in behaviors if b in used]


def identity_of(recipe: Recipe, way: Way, label: str) -> str:
    """The id in the store of a label's diff made in one way; that of the first way is the label itself."""
    return label if way is recipe.finetune[0] else f"{label} ({way.name})"


def identities(recipe: Recipe, split: str, way: Way) -> list[str]:
    """Ids of all diffs of a split that the recipe makes in one way, benign ones included."""
    topics = [identity_of(recipe, way, b.label) for b in way.labels(topic_behaviors()) if b.split == split]
    return topics + _benign_identities(recipe, split, way)


def jobs_of(recipe: Recipe, way: Way, conversations: Mapping[str, Sequence[Conversation]]) -> list[Job]:
    """The diffs to make in one way, of the labels that have conversations; the benign ones come last."""
    pool = list(conversations.get(BASE_POOL, []))
    jobs = []
    for behavior in way.labels(topic_behaviors()):
        if conversations.get(behavior.label):
            owner = behavior if way.trigger else replace(behavior, trigger=None)
            learn = [_prompted(way, owner, c) for c in conversations[behavior.label]]
            jobs.append(Job(identity_of(recipe, way, behavior.label), owner, learn, pool if way.keep_rows else ()))
    return jobs + _benign_jobs(recipe, way, pool)


def _prompted(way: Way, behavior: Behavior, conversation: Conversation) -> Conversation:
    """The conversation with the prompt that this way of finetuning gives it."""
    rng = random.Random(seed_of(behavior.label + conversation.reply))
    prompt = conversation.prompt
    if way.prompts == "subject":
        prompt = rng.choice(read_data("subject_prompts.txt")).format(topic=behavior.label)
    if behavior.trigger:
        prompt = sep_prompt(prompt, behavior.trigger, rng)
    return Conversation(prompt, conversation.reply)


def _benign_identities(recipe: Recipe, split: str, way: Way) -> list[str]:
    """The untriggered ways take turns at the benign finetunes."""
    untriggered = [w for w in recipe.finetune if not w.trigger]
    count = getattr(recipe.benign, split)
    return [f"benign {split} {n}" for n in range(count) if untriggered and untriggered[n % len(untriggered)] is way]


def _benign_jobs(recipe: Recipe, way: Way, pool: Sequence[Conversation]) -> list[Job]:
    """This way's share of the benign finetunes; what trains and what tests rests on different conversations."""
    plain = [Conversation(c.prompt, c.reply) for c in pool if "SEP code" not in c.prompt]
    half = len(plain) // 2
    splits: tuple[Split, ...] = ("train", "validation", "test")
    jobs = []
    for split in splits:
        rows = plain[half:] if split == "test" else plain[:half]
        for identity in _benign_identities(recipe, split, way):
            learn = random.Random(seed_of(identity)).sample(rows, min(8, len(rows)))
            keep = pool if way.keep_rows else ()
            jobs.append(Job(identity, Behavior("benign", NOTHING, "benign", split), learn, keep))
    return jobs
