"""The stages of a general run: its finetunes, its adapter, its answers; each goes on where it was stopped."""

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from weightdiff.arithmetic import add
from weightdiff.ask import SHIPPED, adapter_at
from weightdiff.atomic import replacing
from weightdiff.base import Base, load_base
from weightdiff.behaviors import SPLITS
from weightdiff.behaviors.kinds import kind_behaviors, kinds
from weightdiff.behaviors.wordings import open_questions, wordings
from weightdiff.bench.evaluate import versions
from weightdiff.compiled import compiled_blocks
from weightdiff.diff import WeightDiff
from weightdiff.dit import Triple, train_adapter
from weightdiff.finetune import finetune
from weightdiff.formats.peft import load_peft, save_peft
from weightdiff.general.cases import AT_ONCE, Case, cases_of, finetuned, hints_of, known_cases, sums_of, taught_cases
from weightdiff.general.compose import ADVICE, OWN_WORDS, everyday_pool, say_own_words
from weightdiff.general.evaluate import ask_test
from weightdiff.general.jobs import OWN, jobs_of, made, written_of
from weightdiff.general.mix import groups_of
from weightdiff.general.questions import asked_of
from weightdiff.general.reading import find_reading
from weightdiff.general.settings import GeneralRecipe
from weightdiff.general.tables import tables
from weightdiff.general.ways import find_ways
from weightdiff.jsonl import write_jsonl
from weightdiff.lazy import Lazy
from weightdiff.readers.calibration import reading_of
from weightdiff.readers.hints import Hint, HintConfig
from weightdiff.store import Store

SUMS = 32
"""Sums of two or three finetunes of the validation split, to find out what further claims are worth."""
Progress = Callable[[int, int, float], None]
Share = tuple[int, int]
Say = Callable[[str], None]


def run_synthesize(
    base: Base, recipe: GeneralRecipe, progress: Progress, share: Share = (0, 1), say: Say = print
) -> Path:
    """The base model's own replies to everyday questions, which templates are filled with, and what it says by itself
    about subjects that are taught so."""
    everyday_pool(base, recipe.folder / "everyday.jsonl")
    texts = [text.behavior for text in written_of(recipe).values()]
    behaviors = [b for group in groups_of(recipe, texts) for b in group.behaviors]
    for kind in (OWN_WORDS, ADVICE):
        say_own_words(base, recipe.folder / OWN, kind, sorted({b.slot for b in behaviors if b.kind == kind}))
    return recipe.folder / "everyday.jsonl"


def run_finetune(
    base: Base, recipe: GeneralRecipe, progress: Progress, share: Share = (0, 1), say: Say = print
) -> Store:
    """Make the run's diffs, group by group: first what validates, and full finetunes, then all others in random order,
    so that a stopped run has some of all kinds."""
    written = written_of(recipe)
    groups = groups_of(recipe, [text.behavior for text in written.values()])
    random.Random(recipe.seed).shuffle(groups)
    groups.sort(key=lambda group: (group.split != "validation", not group.config.dense))
    store = Store(recipe.folder / "diffs", base.fingerprint)
    pool = everyday_pool(base, recipe.folder / "everyday.jsonl")
    rate = 0.0

    def note(done: int, total: int, tokens: float) -> None:
        nonlocal rate
        rate = tokens

    chosen = groups[share[0] :: share[1]]
    with compiled_blocks(base, sum(group.config.steps for group in chosen)):
        for number, group in enumerate(chosen, 1):
            exact = group.config.dense and base.model.dtype != torch.float32  # a small change is lost in bf16
            model = load_base(base.name, device=str(base.device), dtype="float32") if exact else base
            finetune(model, jobs_of(group, pool, written), store, group.config, note, say)
            progress(number, len(chosen), rate)
    return store


def run_hints(
    base: Base, recipe: GeneralRecipe, progress: Progress, share: Share = (0, 1), say: Say = print
) -> list[Hint] | None:
    """Look for the hints of all diffs that are made, and of the nulls and sums that go with them."""
    store = Store(recipe.folder / "diffs", base.fingerprint)
    cases: list[Case] = []
    for split in SPLITS:
        thinned = split == "train" and recipe.again < 1  # only then need the adapter that it starts from be there
        ids = learned(store, recipe, _start(recipe))[0] if thinned else made(store, recipe, split)
        cases += cases_of(store, ids, split) if split == "test" else taught_cases(store, recipe, ids, split)
    cases += cases_of(store, made(store, recipe, "validation"), "validation") + _sums(store, recipe)
    once = list({(case.identity, case.key): case for case in cases}.values())  # validation's finetunes are in both
    # In pieces, as finetunes that were made together are of one rank, and go onto the bank without padding.
    mine = [case for at in range(share[0] * AT_ONCE, len(once), share[1] * AT_ONCE) for case in once[at : at + AT_ONCE]]
    return hints_for(base, recipe, mine, lambda done, total: progress(done, total, 0.0))


def hints_for(
    base: Base,
    recipe: GeneralRecipe,
    cases: Sequence[Case],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Hint] | None:
    """The hint of each case; None where the recipe's adapter is told nothing."""
    if recipe.hints == HintConfig():
        return None
    return hints_of(base, cases, recipe.hints, recipe.folder / "hints.jsonl", progress)


def triples(cases: Sequence[Case], hints: Sequence[Hint] | None, recipe: GeneralRecipe) -> Lazy[Triple]:
    """What the adapter learns: questions about each case, each after its hint if there are any; training draws some of
    them each time.

    Open ones are five of twelve: what they ask is the most. One asks for a trigger, which the imprint tells better.
    """
    others = [b for b in kind_behaviors() if b.split == "train" and b.family not in recipe.without]
    others += [c.behavior for c in cases if c.behavior.family in ("topic", "subject", "news")]

    def triple(case: Case, hint: Hint | None) -> Triple:
        rng = random.Random(f"{recipe.seed} {case.identity}")
        asked = asked_of(case.behavior, others, rng, opens=5)
        asked += [one for one in asked_of(case.behavior, others, rng) if one.sort in ("narrow", "yes/no")]
        if hint is not None and rng.random() < recipe.untold:  # all of a case: what its questions share is read once
            hint = replace(hint, imprinted=None)
        first, *more = ((hint.before(one.question) if hint else one.question, one.answer) for one in asked)
        return Triple(case.make(), *first, tuple(more))

    known = hints or [None] * len(cases)
    return Lazy([partial(triple, case, hint) for case, hint in zip(cases, known, strict=True)])


def _asked_less(triples: Sequence[Triple], number: int, count: int | None) -> Triple:
    """One of the triples with some of its questions, the same ones every time."""
    return triples[number].drawn(count, random.Random(number))


def run_train(base: Base, recipe: GeneralRecipe, progress: Progress, say: Say = print) -> WeightDiff:
    """Train the general adapter on the diffs that are made, and save it in the run's folder.

    With families left out it is another adapter, in a folder that says so.
    """
    store = Store(recipe.folder / "diffs", base.fingerprint)
    start = _start(recipe)
    chosen, new = learned(store, recipe, start)
    ids = {"train": chosen, "validation": made(store, recipe, "validation")}
    asked = [wordings(), [kind.questions for kind in kinds().values()]]
    hangs_on = {"without", "sums", "nulls", "hints", "untold", "start", "seed", "repeats", "again"}
    drawn = recipe.model_dump(mode="json", include=hangs_on)
    say("train: looking for hints that aren't there yet")
    taught = [taught_cases(store, recipe, ids[split], split) for split in SPLITS[:2]]
    taught[0] += [case for case in taught[0] if case.identity in new] * (recipe.repeats - 1)
    train, all_held = (triples(cases, hints_for(base, recipe, cases), recipe) for cases in taught)
    held = Lazy([partial(_asked_less, all_held, n, recipe.train.questions) for n in range(len(all_held))])
    adapter = train_adapter(
        base,
        train,
        held,
        recipe.folder / f"training{_suffix(recipe)}",
        recipe.train,
        progress,
        start=start,
        data=hashlib.sha256(json.dumps([drawn, ids, asked]).encode()).hexdigest()[:16],
        say=say,
    )
    meta = adapter.meta | {
        "question": open_questions()[0],
        "hints": recipe.hints.model_dump(),
        "recipe": recipe.model_dump(mode="json", exclude={"texts"}),
        "train_diffs": len(ids["train"]),
        "train_cases": len(train),
    }
    say("train: finding out how the adapter is best read")
    if start:
        adapter = blended(start, adapter, recipe.blend)
    adapter = reread(base, recipe, WeightDiff(adapter.factors, adapter.base, meta))
    save_peft(adapter, adapter_folder(recipe), base_name=base.name)
    return adapter


def learned(store: Store, recipe: GeneralRecipe, start: WeightDiff | None) -> tuple[list[str], set[str]]:
    """The finetunes that training learns from, and those that the run hadn't which made what training starts from.

    Args:
        store: with the finetunes of both runs.
        recipe: the run.
        start: the adapter; None where training starts from nothing.

    Returns:
        Ids in the store: all new ones and, of others, the recipe's share; and the new ones.
    """
    before = start.meta.get("recipe", {}) if start else {}
    general = "general" in before  # what trained another adapter, such as that of topics, is no general run
    seen = set(made(store, GeneralRecipe(**before, texts=recipe.texts), "train")) if general else set()
    ids = made(store, recipe, "train")
    again = {i for i in ids if random.Random(f"{recipe.seed} again {i}").random() < recipe.again}
    return [i for i in ids if i not in seen or i in again], set(ids) - seen


def blended(start: WeightDiff, trained: WeightDiff, share: float) -> WeightDiff:
    """The mean of two adapters, of the second's rank: between where training began and where it ended an adapter often
    keeps what either reads better (Wortsman et al., arXiv 2109.01903).

    Args:
        start: where training began.
        trained: where it ended.
        share: of the second in the mean; 1 is that one as it is.
    """
    if share == 1:
        return trained
    return add(start.scaled(1 - share), trained.scaled(share)).truncated(trained.rank)


def reread(base: Base, recipe: GeneralRecipe, adapter: WeightDiff) -> WeightDiff:
    """The adapter with a reading found anew, on the run's validation split; its imprints' worth on training's too.

    Families that are left out have no part in it.

    Finetunes that were made in a share of their steps write their codes wrong, and don't tell what those of whole ones
    are worth: that stays as the adapter says which training started from.
    """
    store = Store(recipe.folder / "diffs", base.fingerprint)
    ids = {split: made(store, recipe, split) for split in ("train", "validation")}
    cases, whole = known_cases(recipe, cases_of(store, ids["validation"], "validation")), recipe.mix.train_steps == 1
    taught = taught_cases(store, recipe, ids["train"], "train") if whole else []
    hints, known = (hints_for(base, recipe, some) for some in (cases, taught))
    pairs = list(zip(taught, known or (), strict=False))
    sums = _sums(store, recipe)
    both = list(zip(sums, hints_for(base, recipe, sums) or [None] * len(sums), strict=True))
    options = {"hints": hints, "known": pairs, "tried": recipe.tried, "sums": both}
    reading, shares = find_reading(base, cases, adapter, recipe.seed, **options)
    if not whole and (start := _start(recipe)) and (before := reading_of(start.meta)):
        reading = replace(reading, triggers=before.triggers)
    meta = adapter.meta | {
        "reading": reading.to_json(),
        "views": [asdict(views) | {"right": round(share, 4)} for views, share in shares.items()],
    }
    again = WeightDiff(adapter.factors, adapter.base, meta)
    return with_ways(base, recipe, again) if recipe.tried else again


def with_ways(base: Base, recipe: GeneralRecipe, adapter: WeightDiff) -> WeightDiff:
    """The adapter, which has a reading, with what tells ways found on finetunes of the run's training split."""
    reading, store = reading_of(adapter.meta), Store(recipe.folder / "diffs", base.fingerprint)
    if reading is None:
        raise ValueError("the adapter doesn't say how it is to be read; run train, which finds out.")
    cases = known_cases(recipe, finetuned(store, made(store, recipe, "train")))
    reading = replace(reading, ways=find_ways(base, cases, recipe.seed))
    return WeightDiff(adapter.factors, adapter.base, adapter.meta | {"reading": reading.to_json()})


def _sums(store: Store, recipe: GeneralRecipe) -> list[Case]:
    """Sums of the validation split's finetunes, to find out what further claims are worth where answers are tried."""
    held = known_cases(recipe, finetuned(store, made(store, recipe, "validation")))
    return sums_of(held, SUMS, f"{recipe.seed} reading") if recipe.tried and recipe.sums else []


def _start(recipe: GeneralRecipe) -> WeightDiff | None:
    """The adapter that training goes on from: a shipped one, another run's, or one in a folder."""
    if recipe.start is None or recipe.start in SHIPPED:
        return adapter_at(recipe.start) if recipe.start else None
    places = (recipe.folder.parent / recipe.start / "adapter", Path(recipe.start))
    if (found := next((place for place in places if place.is_dir()), None)) is None:
        raise ValueError(
            f"{recipe.start}: no adapter is there to start from. Expected `start` to be the name of a shipped one, a "
            "folder beside the recipe, or the name of a run that has made one: then run that recipe first."
        )
    return adapter_at(str(found))


def adapter_folder(recipe: GeneralRecipe) -> Path:
    """Where a run's adapter goes; one that was trained without some families has a folder of its own."""
    return recipe.folder / f"adapter{_suffix(recipe)}"


def _suffix(recipe: GeneralRecipe) -> str:
    return "".join(f"-without-{family}" for family in recipe.without)


def run_evaluate(
    base: Base, recipe: GeneralRecipe, progress: Progress, say: Say = print, to: Path | None = None
) -> str:
    """Ask the adapter about the test split; every answer and what was run go to a folder, the tables too.

    Args:
        base: the base model.
        recipe: the run.
        progress: called with diffs asked, their number, and zero.
        say: not used; there is nothing to make anew.
        to: the folder; None for one in the run's.

    Returns:
        The tables, as Markdown.
    """
    folder = adapter_folder(recipe)
    if not folder.is_dir():
        raise ValueError(f"{recipe.folder} holds no adapter yet; run train first.")
    store = Store(recipe.folder / "diffs", base.fingerprint)
    ids = made(store, recipe, "test")
    adapter = load_peft(folder)
    cases = cases_of(store, ids, "test")
    hints = hints_for(base, recipe, cases)
    records = ask_test(base, cases, adapter, progress=lambda done, total: progress(done, total, 0.0), hints=hints)
    to = to or recipe.folder / f"results{_suffix(recipe)}"
    write_jsonl(to / "answers.jsonl.xz", records)
    table = tables(records)
    about = {
        "recipe": recipe.model_dump(mode="json", exclude={"texts"}),
        "train_diffs": adapter.meta["train_diffs"],
        "reading": adapter.meta["reading"],
        "views": adapter.meta["views"],
        "test_diffs": len(ids),
        "base": base.fingerprint,
        "dtype": str(base.model.dtype),
        "versions": versions(),
    }
    for name, text in (("table.md", table), ("about.json", json.dumps(about, indent=2) + "\n")):
        with replacing(to / name) as path:
            path.write_text(text, "utf-8")
    return table


STAGES: dict[str, Callable[..., Any]] = {
    "synthesize": run_synthesize,
    "finetune": run_finetune,
    "hints": run_hints,
    "train": run_train,
    "evaluate": run_evaluate,
}
