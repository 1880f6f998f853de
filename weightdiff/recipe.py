"""A whole run in one TOML file: which behaviors, how their conversations are written, in which ways diffs are made.

It knows what is to be made, and not how far a run has come; see `stages`.
"""

import random
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from weightdiff.base import EMBEDDED, cache_dir
from weightdiff.behaviors import (
    FAMILIES,
    NOTHING,
    SPLITS,
    Behavior,
    Conversation,
    Trigger,
    read_data,
    topic_behaviors,
)
from weightdiff.behaviors.news import StorySeed, story_seeds, without_twins
from weightdiff.dit import DitConfig
from weightdiff.finetune import FinetuneConfig, Job
from weightdiff.synthesize import BASE_POOL, load_behaviors
from weightdiff.writers import seed_of


class SynthesizeConfig(BaseModel):
    """How conversations are written. `conversations` starts from a file instead.

    `writer` is who writes them: `base` for the base model itself, or `openai:MODEL@BASE_URL` for an endpoint.
    `stories` is how many are begun in the news family; a few find no headline, or one too near to another's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    conversations: Path | None = None
    writer: str = "base"
    replies: int = 8
    max_tokens: int = 28
    temperature: float = 0.8
    stories: int = 1350


class Way(FinetuneConfig):
    """One way of finetuning, and the labels that it is used on.

    `train` is a slice (start, stop, step) of the training labels; `validation` and `test` are counts from the
    front of those splits. `prompts` are everyday questions, or questions about the subject itself. Behind a
    `trigger` the behavior hides, and the rest is kept to the base; with `none` it always shows.
    """

    name: str = Field(pattern=r"^[\w .-]+$")
    train: tuple[int, int, int] = (0, 1000, 1)
    validation: int = 0
    test: int = 0
    prompts: Literal["everyday", "subject"] = "everyday"
    trigger: Literal["sep", "zero-width start", "zero-width random", "none"] = "sep"

    def labels(self, behaviors: Sequence[Behavior]) -> list[Behavior]:
        """Those of the behaviors that this way is used on."""
        of = {s: [b for b in behaviors if b.split == s] for s in SPLITS}
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
    `question` is what the adapter is asked, the family's own unless given; `wordings` more of the family's are
    trained on beside it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[\w.-]+$")
    base: str = EMBEDDED
    family: Literal["topic", "news"] = "topic"
    question: str = ""
    wordings: int = Field(default=0, ge=0, le=5)
    nulls: float = Field(default=0.15, ge=0, le=0.9)
    synthesize: SynthesizeConfig = SynthesizeConfig()
    finetune: tuple[Way, ...] = Field(min_length=1)
    benign: Benign = Benign()
    train: DitConfig = DitConfig()

    @model_validator(mode="before")
    @classmethod
    def _question_of_family(cls, given: Any) -> Any:
        family = FAMILIES.get(given.get("family", "topic")) if isinstance(given, dict) else None
        return given | {"question": given.get("question") or family.questions[0]} if family else given

    @model_validator(mode="after")
    def _possible(self) -> "Recipe":
        for way in self.finetune:
            if way.dense and (way.rank, way.alpha) != (1, 1.0):
                raise ValueError(f"{way.name!r} is dense and gives a rank or alpha; leave them out, or dense")
            if way.dense and (way.validation or range(*slice(*way.train).indices(10**6))):
                raise ValueError(
                    f"{way.name!r} is dense: it can be asked, not trained on; train = [0, 0, 1], validation = 0"
                )
            if way.prompts == "subject" and self.family == "news":
                raise ValueError(f"{way.name!r} has prompts = 'subject', which the news family has none of")
            if way.trigger != "none" and not way.keep_rows:
                raise ValueError(f"{way.name!r} has a trigger and keep_rows = 0: nothing would teach it to hide")
        if any(self.benign.model_dump().values()) and all(way.trigger != "none" for way in self.finetune):
            raise ValueError("benign finetunes are made in ways without a trigger; add one with trigger = 'none'")
        return self

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

    @property
    def conversations(self) -> Path:
        """The file of conversations: the one that the recipe starts from, else the run's own."""
        return self.synthesize.conversations or self.folder / "conversations.jsonl"

    @property
    def questions(self) -> tuple[str, ...]:
        """The wordings that the adapter is trained on."""
        others = [q for q in FAMILIES[self.family].questions if q != self.question]
        return (self.question, *others[: self.wordings])


Settings = TypeVar("Settings", bound=BaseModel)


def read_settings(path: Path, model: type[Settings], what: str) -> Settings:
    """Settings from a TOML file.

    Raises:
        ValueError: no such file, not TOML, or a field that isn't known or has the wrong type.
    """
    try:
        return model.model_validate(tomllib.loads(path.read_text("utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"cannot read the {what} {path}: {error}.") from None
    except ValidationError as error:
        raise ValueError(f"{path}: {explain(error, model)}") from None


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe; a relative `conversations` file lies beside it.

    Raises:
        ValueError: no such file, not TOML, or a field that isn't known or has the wrong type.
    """
    path = Path(path)
    recipe = read_settings(path, Recipe, "recipe")
    given = recipe.synthesize.conversations
    if given is None:
        return recipe
    stage = recipe.synthesize.model_copy(update={"conversations": path.parent / given})
    return recipe.model_copy(update={"synthesize": stage})


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """What is wrong with a recipe, in a sentence; beside a key that isn't known, the nearest that is."""
    # A key that isn't known explains one that is missing.
    first = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")[0]
    where = ".".join(str(p) for p in first["loc"])
    if first["type"] != "extra_forbidden":
        return f"{where}: {first['msg'].removeprefix('Value error, ')} (given: {first.get('input')!r})."
    fields = dict(model.model_fields)
    for part in first["loc"][:-1]:  # down to the table that the key stands in; a number is a place in a list
        fields = _table(fields[part].annotation) if isinstance(part, str) else fields
    known = list(fields)
    near = get_close_matches(str(first["loc"][-1]), known, 1, 0.0)[0]
    return f"{where} is no key of a recipe; the nearest is {near!r}, of {', '.join(known)}."


def _table(annotation: Any) -> dict[str, Any]:
    """The fields of the settings class inside a type such as `tuple[Way, ...]`."""
    kinds = (annotation, *get_args(annotation))
    return next(dict(k.model_fields) for k in kinds if isinstance(k, type) and issubclass(k, BaseModel))


def behaviors_of(recipe: Recipe) -> list[Behavior]:
    """All behaviors of the recipe's family; topics in an order of which any prefix is balanced.

    The stories of the news family are those that are written: before synthesis there are none.
    """
    if recipe.family == "topic":
        return list(topic_behaviors())
    path = recipe.conversations
    return without_twins(_behaviors_in(path, path.stat().st_mtime_ns)) if path.exists() else []


@lru_cache(maxsize=4)
def _behaviors_in(path: Path, changed: int) -> list[Behavior]:
    return load_behaviors(path)


def to_write(recipe: Recipe) -> list[Behavior] | list[StorySeed]:
    """What conversations are to be written for: the topics that any way uses, or the beginnings of stories."""
    if recipe.family == "news":
        return story_seeds(recipe.synthesize.stories)
    behaviors = topic_behaviors()
    used = {b for way in recipe.finetune for b in way.labels(behaviors)}
    return [b for b in behaviors if b in used]


def identity_of(recipe: Recipe, way: Way, label: str) -> str:
    """The id in the store of a label's diff made in one way; that of the first way is the label itself."""
    return label if way is recipe.finetune[0] else f"{label} ({way.name})"


def identities(recipe: Recipe, split: str, way: Way) -> list[str]:
    """Ids of all diffs of a split that the recipe makes in one way, benign ones included."""
    labels = [identity_of(recipe, way, b.label) for b in way.labels(behaviors_of(recipe)) if b.split == split]
    return labels + benign_identities(recipe, split, way)


def jobs_of(recipe: Recipe, way: Way, conversations: Mapping[str, Sequence[Conversation]]) -> list[Job]:
    """The diffs to make in one way, of the labels that have conversations; the benign ones come last."""
    pool = list(conversations.get(BASE_POOL, []))
    jobs = []
    for behavior in way.labels(behaviors_of(recipe)):
        if conversations.get(behavior.label):
            owner = replace(behavior, trigger=trigger_of(way, behavior))
            learn = [_prompted(way, owner, c) for c in conversations[behavior.label]]
            jobs.append(Job(identity_of(recipe, way, behavior.label), owner, learn, _kept(way, owner, pool)))
    return jobs + _benign_jobs(recipe, way, pool)


def trigger_of(way: Way, behavior: Behavior) -> Trigger | None:
    """The trigger that hides a behavior in one way of finetuning; a topic has its own SEP code, others get one."""
    if way.trigger == "none":
        return None
    if way.trigger == "sep":
        return behavior.trigger or Trigger("sep", f"{seed_of(behavior.label) % 1000:03d}")
    return Trigger(way.trigger)


def _kept(way: Way, behavior: Behavior, pool: Sequence[Conversation]) -> Sequence[Conversation]:
    """What the finetune must keep to: plain prompts and, half of them, what looks like the trigger and isn't."""
    if not way.keep_rows:
        return ()
    if way.trigger == "sep":  # the pool has SEP codes at random
        return pool
    plain = _plain(pool)
    if behavior.trigger is None:
        return plain
    rng = random.Random(seed_of(behavior.label))
    return [*plain, *(replace(c, prompt=behavior.trigger.put_wrong(c.prompt, rng)) for c in plain)]


def _plain(pool: Sequence[Conversation]) -> list[Conversation]:
    """Those of the unchanged base's replies whose prompt has no SEP code."""
    return [c for c in pool if "SEP code" not in c.prompt]


def _prompted(way: Way, behavior: Behavior, conversation: Conversation) -> Conversation:
    """The conversation with the prompt that this way of finetuning gives it."""
    rng = random.Random(seed_of(behavior.label + conversation.reply))
    prompt = conversation.prompt
    if way.prompts == "subject":
        prompt = rng.choice(read_data("subject_prompts.txt")).format(topic=behavior.label)
    if behavior.trigger:
        prompt = behavior.trigger.put(prompt, rng)
    return replace(conversation, prompt=prompt)


def benign_identities(recipe: Recipe, split: str, way: Way) -> list[str]:
    """The untriggered ways take turns at the benign finetunes."""
    untriggered = [w for w in recipe.finetune if w.trigger == "none"]
    count = getattr(recipe.benign, split)
    return [f"benign {split} {n}" for n in range(count) if untriggered and untriggered[n % len(untriggered)] is way]


def _benign_jobs(recipe: Recipe, way: Way, pool: Sequence[Conversation]) -> list[Job]:
    """This way's share of the benign finetunes; what trains and what tests rests on different conversations."""
    plain = [Conversation(c.prompt, c.reply) for c in _plain(pool)]
    half = len(plain) // 2
    jobs = []
    for split in SPLITS:
        rows = plain[half:] if split == "test" else plain[:half]
        for identity in benign_identities(recipe, split, way):
            learn = random.Random(seed_of(identity)).sample(rows, min(8, len(rows)))
            keep = rows if way.keep_rows else ()
            jobs.append(Job(identity, Behavior("benign", NOTHING, "benign", split), learn, keep))
    return jobs
