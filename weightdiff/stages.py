"""The stages of a run: synthesize, finetune, train, evaluate.

Each reads what the one before it wrote into the run's folder, can be stopped at any moment, and goes on where it
was when it is called again; but for evaluate, which takes minutes and starts over.
"""

import fcntl
import hashlib
import json
import os
import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from weightdiff.atomic import replacing
from weightdiff.base import Base, load_base
from weightdiff.behaviors import FAMILIES, NOTHING
from weightdiff.bench.evaluate import evaluate_readers, false_claims, null_table, versions
from weightdiff.diff import WeightDiff, noise_like, shuffled
from weightdiff.dit import Triple, train_adapter
from weightdiff.finetune import finetune
from weightdiff.formats.peft import load_peft, save_peft
from weightdiff.jsonl import append_jsonl
from weightdiff.lazy import Lazy
from weightdiff.llm import CachedModel, open_llm
from weightdiff.recipe import Recipe, Way, identities, jobs_of, to_write
from weightdiff.store import Store
from weightdiff.synthesize import load_conversations, synthesize

Progress = Callable[[int, int, float], None]
Share = tuple[int, int]
"""(i, n): the i-th of n shares, so that several processes can work on one run side by side."""
Say = Callable[[str], None]
"""Told in a sentence what is computed anew, and why."""


def run_synthesize(base: Base, recipe: Recipe, progress: Progress, share: Share = (0, 1), say: Say = print) -> Path:
    """Write the conversations, or return the file that the recipe starts from."""
    if recipe.synthesize.conversations is not None:
        return recipe.conversations
    path, stage, (mine, shares) = recipe.conversations, recipe.synthesize, share
    wanted = stage.model_dump(mode="json", exclude={"conversations", "stories"})
    _set_aside(path, wanted | {"family": recipe.family, "base": base.fingerprint}, say)
    local = stage.writer == "base"
    synthesize(
        base,
        to_write(recipe)[mine::shares],
        path,
        writer=None if local else CachedModel(open_llm(stage.writer), recipe.folder / f"written-{mine}.jsonl"),
        replies=stage.replies,
        max_tokens=stage.max_tokens,
        temperature=stage.temperature,
        progress=lambda done, total: progress(done, total, 0.0),
        say=say,
    )
    return path


def _set_aside(path: Path, wanted: dict[str, Any], say: Say) -> None:
    """Move conversations that were written with other settings out of the way; one share does, the others wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name("conversations-of.json"), "a+") as note:
        fcntl.flock(note, fcntl.LOCK_EX)
        note.seek(0)
        text = note.read()
        before = json.loads(text) if text.strip() else wanted
        if path.exists() and before != wanted:
            changed = next(k for k in wanted if before.get(k) != wanted[k])
            kept = path.with_name(f"conversations-before-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.jsonl")
            os.replace(path, kept)
            was, now = before.get(changed), wanted[changed]
            say(f"synthesize: {changed} was {was!r}, and is {now!r} now; all is written anew.")
            say(f"The old conversations are kept in {kept.name}.")
        note.truncate(0)
        note.write(json.dumps(wanted))


def run_finetune(base: Base, recipe: Recipe, progress: Progress, share: Share = (0, 1), say: Say = print) -> Store:
    """Make the diffs of all labels that have conversations, one way of finetuning after the other, dense ones last."""
    mine, shares = share
    conversations = load_conversations(recipe.conversations)
    ways = sorted(recipe.finetune, key=lambda way: way.dense)
    plans = [(way, jobs_of(recipe, way, conversations)[mine::shares]) for way in ways]
    total, before = sum(len(jobs) for _, jobs in plans), 0
    if not total:
        raise ValueError(
            f"{recipe.conversations} has conversations for none of the recipe's labels; run synthesize first."
        )
    store = Store(recipe.folder / "diffs", base.fingerprint)
    for way, jobs in plans:
        if way.dense and jobs and base.model.dtype != torch.float32:
            base = load_base(base.name, device=str(base.device), dtype="float32")
        finetune(base, jobs, store, way, lambda done, _, rate, before=before: progress(before + done, total, rate), say)
        before += len(jobs)
    return store


def run_train(base: Base, recipe: Recipe, progress: Progress, say: Say = print) -> WeightDiff:
    """Train the DIT adapter on the train split, with nulls, and save it as a PEFT folder."""
    store = Store(recipe.folder / "diffs", base.fingerprint)
    ids = diffs_of(store, recipe, "train")
    if not ids:
        raise ValueError(f"{store.path} holds none of the recipe's training diffs; run finetune first.")
    train, validation = triples(store, recipe, "train", ids), triples(store, recipe, "validation")
    data = data_key(store, recipe, ids)
    adapter = train_adapter(
        base, train, validation, recipe.folder / "training", recipe.train, progress, data=data, say=say
    )
    meta = adapter.meta | {
        "question": recipe.question,
        "recipe": recipe.model_dump(mode="json"),
        "train_diffs": len(ids),
        "train_diffs_planned": len(planned(recipe, "train")),
    }
    adapter = WeightDiff(adapter.factors, adapter.base, meta)
    save_peft(adapter, recipe.folder / "adapter", base_name=base.name)
    return adapter


def diffs_of(store: Store, recipe: Recipe, split: str, way: Way | None = None) -> list[str]:
    """Ids of a split's diffs that the recipe makes and the store holds, of one way of finetuning or of all."""
    have = set(store.ids())
    return [i for i in planned(recipe, split, way) if i in have]


def real_diffs(store: Store, recipe: Recipe, split: str, way: Way | None = None) -> list[str]:
    """Those of `diffs_of` that teach something: without the benign ones."""
    return [i for i in diffs_of(store, recipe, split, way) if not i.startswith("benign ")]


def benign_diffs(store: Store, recipe: Recipe, split: str) -> list[str]:
    """Those of `diffs_of` that teach nothing in particular."""
    return [i for i in diffs_of(store, recipe, split) if i.startswith("benign ")]


def planned(recipe: Recipe, split: str, way: Way | None = None) -> list[str]:
    """Ids of all diffs of a split that the recipe makes, of one way of finetuning or of all."""
    ways = recipe.finetune if way is None else [way]
    return [i for w in ways for i in identities(recipe, split, w)]


def progress_of(recipe: Recipe, fingerprint: str, split: str) -> str:
    """How many of a split's diffs are made, in words: an unfinished run can be trained and evaluated, knowingly."""
    wanted = planned(recipe, split)
    made = len(diffs_of(Store(recipe.folder / "diffs", fingerprint), recipe, split))
    return f"{made} of {len(wanted)} diffs of the {split} split are made"


def data_key(store: Store, recipe: Recipe, ids: Sequence[str]) -> str:
    """A hash of what an adapter is trained and validated on: which diffs, how they were made, question and nulls."""
    used = [*ids, *diffs_of(store, recipe, "validation")]
    metas = store.metas(used)
    facts = [recipe.questions, recipe.nulls, [(i, metas[i]) for i in used]]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def triples(store: Store, recipe: Recipe, split: str, ids: Sequence[str] | None = None) -> Lazy[Triple]:
    """What the adapter learns from a split: each diff's label, and among them nulls that say nothing changed.

    Beside the benign finetunes a third of the nulls each are the unchanged base, noise with the norms of a diff,
    and shuffled diffs. `ids` takes those diffs only, for a curve.
    """
    questions = recipe.questions
    diffs = store.diffs(diffs_of(store, recipe, split) if ids is None else ids)

    def real(number: int) -> Triple:
        diff = diffs[number]
        return Triple(diff, questions[number % len(questions)], diff.meta["label"])

    def null(number: int) -> Triple:
        model = diffs[random.Random(f"{split} {number}").randrange(len(diffs))]  # nulls of every way of finetuning
        return Triple(null_diff(model, split, number), questions[number % len(questions)], NOTHING)

    count = round(len(diffs) * recipe.nulls / (1 - recipe.nulls))
    return Lazy([*(partial(real, i) for i in range(len(diffs))), *(partial(null, i) for i in range(count))])


def null_diff(diff: WeightDiff, split: str, number: int) -> WeightDiff:
    """The `number`-th null of a split; noise of one split is never that of another."""
    seed = {"train": 0, "validation": 10**6, "test": 2 * 10**6}[split] + number
    kinds = (lambda: WeightDiff({}, diff.base), lambda: noise_like(diff, seed), lambda: shuffled(diff, seed))
    return kinds[number % 3]()


def run_evaluate(base: Base, recipe: Recipe, progress: Progress, say: Say = print) -> dict[str, Any]:
    """Ask all readers about the test split, grade the answers, and write `results.json` and `answers.jsonl`.

    All readers are compared on the first way of finetuning; DIT and the base question on the others too.
    """
    from weightdiff.judge import EmbeddedJudge
    from weightdiff.readers import BaseQuestion, Introspection, TwentyQuestions

    if not (recipe.folder / "adapter").is_dir():
        raise ValueError(f"{recipe.folder} holds no adapter yet; run train first.")
    adapter, judge = load_peft(recipe.folder / "adapter"), EmbeddedJudge()
    store = Store(recipe.folder / "diffs", base.fingerprint)
    question, answers = recipe.question, recipe.folder / "answers.jsonl"
    family = FAMILIES[recipe.family]
    dit, asked = Introspection(adapter), BaseQuestion(max_tokens=family.room)
    twenty = TwentyQuestions(family.probes, sentence=family.sentence)
    first, *others = [real_diffs(store, recipe, "test", way) for way in recipe.finetune]
    table = evaluate_readers(
        base, store.diffs(first), [dit, asked, twenty], question, judge, answers, family.name, progress
    )
    nulls = null_table(base, store.load(first), store.diffs([i for ids in others for i in ids]), adapter, question)
    results = table | nulls | {"others": {}}
    for way, ids in zip(recipe.finetune[1:], others, strict=True):
        if ids:
            lines = recipe.folder / f"answers-{way.name.replace(' ', '-')}.jsonl"
            table = evaluate_readers(
                base, store.diffs(ids), [dit, asked], question, judge, lines, family.name, progress
            )
            results["others"][way.name] = table["readers"]
    if benign := benign_diffs(store, recipe, "test"):
        results["false_claims"]["benign"] = false_claims(dit.read(base, store.diffs(benign), question))
    results["run"] = {
        "recipe": adapter.meta["recipe"],
        "base": base.fingerprint,
        "train_diffs": adapter.meta["train_diffs"],
        "train_diffs_planned": adapter.meta["train_diffs_planned"],
        "versions": versions(),
    }
    with replacing(recipe.folder / "results.json") as path:
        path.write_text(json.dumps(results, indent=2))
    return results


def logged(recipe: Any, stage: str, progress: Progress, every: float = 10.0) -> Progress:
    """The same progress, noted in the run's `metrics.jsonl` too, at most every ten seconds and at the end.

    Each line has the stage, what is done of how much, the stage's own rate (tokens a second, loss), and seconds.
    """
    started = last = time.monotonic()

    def note(done: int, total: int, rate: float) -> None:
        nonlocal last
        progress(done, total, rate)
        now = time.monotonic()
        if now - last >= every or done >= total:
            last = now
            record = {"stage": stage, "done": done, "total": total, "rate": round(rate, 4)}
            append_jsonl(recipe.folder / "metrics.jsonl", record | {"seconds": round(now - started, 1)})

    return note


STAGES: dict[str, Callable[..., Any]] = {
    "synthesize": run_synthesize,
    "finetune": run_finetune,
    "train": run_train,
    "evaluate": run_evaluate,
}
