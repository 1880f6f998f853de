"""A whole run in one TOML file, and its stages: synthesize, finetune, train, evaluate.

Each stage reads what the one before it wrote into the run's folder, can be stopped at any moment, and goes on
where it was when it is called again.
"""

import json
import os
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from weightdiff.base import EMBEDDED, Base, cache_dir
from weightdiff.behaviors import NOTHING, TOPIC_QUESTION, Behavior, topic_behaviors
from weightdiff.bench.evaluate import evaluate_readers, null_table
from weightdiff.diff import WeightDiff, noise_like
from weightdiff.dit import DitConfig, Triple, train_adapter
from weightdiff.finetune import FinetuneConfig, Job, finetune
from weightdiff.formats.peft import load_peft, save_peft
from weightdiff.store import Store
from weightdiff.synthesize import BASE_POOL, load_conversations, synthesize

Progress = Callable[[int, int, float], None]


class SynthesizeConfig(BaseModel):
    """How conversations are written. `conversations` starts from a file instead."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    conversations: Path | None = None
    replies: int = 8
    max_tokens: int = 28
    temperature: float = 0.8


class Recipe(BaseModel):
    """One run. Counts say how many labels of each split are used; the lists are the project's own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[\w.-]+$")
    base: str = EMBEDDED
    question: str = TOPIC_QUESTION
    train_labels: int = 1000
    validation_labels: int = 100
    test_labels: int = 100
    nulls: float = Field(0.15, ge=0, le=0.9)
    synthesize: SynthesizeConfig = SynthesizeConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    train: DitConfig = DitConfig()

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
    except (OSError, tomllib.TOMLDecodeError) as error:
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
    """The behaviors that a recipe uses, in an order of which any prefix is balanced."""
    left = {"train": recipe.train_labels, "validation": recipe.validation_labels, "test": recipe.test_labels}
    chosen = []
    for behavior in topic_behaviors():
        if left[behavior.split] > 0:
            left[behavior.split] -= 1
            chosen.append(behavior)
    return chosen


def run_synthesize(base: Base, recipe: Recipe, progress: Progress) -> Path:
    """Write the conversations, or return the file that the recipe starts from."""
    given = recipe.synthesize.conversations
    if given is not None:
        return given
    path = recipe.folder / "conversations.jsonl"
    stage = recipe.synthesize
    synthesize(
        base,
        behaviors_of(recipe),
        path,
        replies=stage.replies,
        max_tokens=stage.max_tokens,
        temperature=stage.temperature,
        progress=lambda done, total: progress(done, total, 0.0),
    )
    return path


def run_finetune(base: Base, recipe: Recipe, progress: Progress) -> Store:
    """Make the diffs of all behaviors that have conversations."""
    path = recipe.synthesize.conversations or recipe.folder / "conversations.jsonl"
    conversations = load_conversations(path)
    pool = conversations.get(BASE_POOL, [])
    behaviors = [b for b in behaviors_of(recipe) if conversations.get(b.label)]
    if not behaviors:
        raise ValueError(f"{path} has conversations for none of the recipe's labels; run synthesize first.")
    jobs = [Job(b.label, b, conversations[b.label], pool) for b in behaviors]
    store = Store(recipe.folder / "diffs", base.fingerprint)
    finetune(base, jobs, store, recipe.finetune, progress)
    return store


def run_train(base: Base, recipe: Recipe, progress: Progress) -> WeightDiff:
    """Train the DIT adapter on the train split, with nulls, and save it as a PEFT folder."""
    store = Store(recipe.folder / "diffs", base.fingerprint)
    train, validation = (triples(store, recipe, split) for split in ("train", "validation"))
    adapter = train_adapter(base, train, validation, recipe.folder / "training", recipe.train, progress)
    meta = adapter.meta | {"question": recipe.question, "recipe": recipe.model_dump(mode="json")}
    adapter = WeightDiff(adapter.factors, adapter.base, meta)
    save_peft(adapter, recipe.folder / "adapter", base_name=base.name)
    return adapter


def triples(store: Store, recipe: Recipe, split: str) -> list[Triple]:
    """What the adapter learns from a split: each diff's label, and among them nulls that say nothing changed.

    Half of the nulls are the unchanged base, half noise with the norm of a diff.
    """
    wanted = {b.label for b in behaviors_of(recipe) if b.split == split}
    diffs = store.load([i for i, m in store.metas().items() if m["label"] in wanted])
    real = [Triple(d, recipe.question, d.meta["label"]) for d in diffs]
    count = round(len(real) * recipe.nulls / (1 - recipe.nulls))
    nulls = [
        WeightDiff({}, store.base) if i % 2 else noise_like(diffs[i % len(diffs)], seed=_null_seed(split, i))
        for i in range(count)
    ]
    return real + [Triple(d, recipe.question, NOTHING) for d in nulls]


def run_evaluate(base: Base, recipe: Recipe, progress: Progress) -> dict[str, Any]:
    """Ask all readers about the test split, grade the answers, and write `results.json` and `answers.jsonl`."""
    from weightdiff.judge import EmbeddedJudge
    from weightdiff.readers import BaseQuestion, Introspection, TwentyQuestions

    adapter = load_peft(recipe.folder / "adapter")
    store = Store(recipe.folder / "diffs", base.fingerprint)
    wanted = {b.label for b in behaviors_of(recipe) if b.split == "test"}
    diffs = store.load([i for i, m in store.metas().items() if m["label"] in wanted])
    readers = [Introspection(adapter), BaseQuestion(), TwentyQuestions()]
    results = evaluate_readers(
        base, diffs, readers, recipe.question, EmbeddedJudge(), recipe.folder / "answers.jsonl", progress
    )
    results |= null_table(base, diffs, adapter, recipe.question)
    results["run"] = {
        "recipe": recipe.model_dump(mode="json"),
        "base": base.fingerprint,
        "train_diffs": adapter.meta.get("n_train"),
        "versions": {p: metadata.version(p) for p in ("torch", "transformers", "weightdiff")},
    }
    temporary = recipe.folder / "results.tmp"
    temporary.write_text(json.dumps(results, indent=2))
    os.replace(temporary, recipe.folder / "results.json")
    return results


STAGES: dict[str, Callable[[Base, Recipe, Progress], Any]] = {
    "synthesize": run_synthesize,
    "finetune": run_finetune,
    "train": run_train,
    "evaluate": run_evaluate,
}


def _null_seed(split: str, index: int) -> int:
    """Noise of one split is never that of another."""
    return {"train": 0, "validation": 10**6, "test": 2 * 10**6}[split] + index
