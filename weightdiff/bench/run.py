"""Run an experiment: make what its runs lack, ask, grade, and write table, figure, rows and answers into one folder."""

import json
import lzma
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from weightdiff.atomic import replacing
from weightdiff.base import Base, cache_dir
from weightdiff.bench.evaluate import versions
from weightdiff.bench.experiments import EXPERIMENTS, Bench
from weightdiff.bench.rows import Rows, Run
from weightdiff.bench.settings import Experiment
from weightdiff.bench.tables import draw, markdown
from weightdiff.llm import CachedModel, open_llm
from weightdiff.llm_judge import open_judge
from weightdiff.local import LocalModel
from weightdiff.readers import Guesser
from weightdiff.recipe import load_recipe, read_settings
from weightdiff.store import Store
from weightdiff.writers import seed_of


def is_experiment(path: str | Path) -> bool:
    """Is this TOML file an experiment, and not the recipe of a run? A file that can't be read is none."""
    try:
        return "experiment" in tomllib.loads(Path(path).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return False


def load_experiment(path: str | Path, runs: Sequence[str] = ()) -> Experiment:
    """Read an experiment; the recipes of its runs lie where it says, seen from its own folder.

    Args:
        path: a TOML file.
        runs: recipes to take instead of its own, of another base model say.

    Raises:
        ValueError: no such file, not TOML, a field or an experiment that isn't known, or too few runs for it.
    """
    path = Path(path)
    plan = read_settings(path, Experiment, "experiment")
    if plan.experiment not in EXPERIMENTS:
        raise ValueError(f"{path}: there is no experiment {plan.experiment!r}; there are {', '.join(EXPERIMENTS)}.")
    single = plan.experiment in ("data scaling", "rank transfer", "unseen triggers", "reporting the trigger")
    asked = len(runs) or len(plan.runs)
    if single and asked != 1:
        raise ValueError(f"{path}: {plan.experiment!r} asks one run, and {asked} are given.")
    plan = plan.model_copy(update={"runs": tuple(map(Path, runs)) or tuple(path.parent / run for run in plan.runs)})
    needs = {"data scaling": "sizes", "rank transfer": "ways", "unseen triggers": "ways"}.get(plan.experiment)
    if needs and not getattr(plan, needs):
        raise ValueError(f"{path}: {plan.experiment!r} needs {needs}, and none are given.")
    recipes = [load_recipe(run) for run in plan.runs]
    if unknown := [w for w in plan.ways if w not in {way.name for way in recipes[0].finetune}]:
        names = [way.name for way in recipes[0].finetune]
        raise ValueError(f"{path}: {plan.runs[0]} has no way of finetuning {unknown[0]!r}; it has {names}.")
    if len({recipe.base for recipe in recipes}) > 1:
        raise ValueError(f"{path}: its runs have different base models, {[r.base for r in recipes]}; give one's only.")
    for spec in (plan.judge, plan.guesser):
        if spec not in ("", "base", "embedded") and not spec.startswith("local:"):
            open_llm(spec)  # a wrong one is told now, and not after hours
    return plan


def run_experiment(
    base: Base,
    plan: Experiment,
    folder: Path,
    seen: Callable[[dict[str, Any]], None] = lambda row: None,
    progress: Callable[[int, int, float], None] = lambda done, total, rate: None,
) -> str:
    """Ask what the experiment asks, of runs whose adapters are trained.

    Args:
        base: the base model of the runs.
        plan: the experiment.
        folder: where `table.md`, `figure.svg`, `rows.jsonl`, `answers.jsonl.xz` and `about.json` go.
        seen: told each row as it comes.
        progress: told the step, the steps in all and the loss where the experiment trains adapters.

    Returns:
        The table, as Markdown.

    Raises:
        ValueError: a run isn't finished, the folder can't be written, an endpoint failed for good.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write to {folder}: {error.strerror}. Give another folder with --out.") from None
    recipes = [load_recipe(path) for path in plan.runs]
    runs = [Run(recipe, Store(recipe.folder / "diffs", base.fingerprint)) for recipe in recipes]
    work = cache_dir() / "experiments" / plan.experiment.replace(" ", "-")
    rows: list[dict[str, Any]] = []

    def note(row: dict[str, Any]) -> None:
        rows.append(row)
        seen(row)

    judge = open_judge(plan.judge, cache_dir() / "judge")
    bench = Bench(plan, runs, Rows(base, judge, work, note), _guesser(base, plan), progress)
    EXPERIMENTS[plan.experiment](bench)
    table = markdown(plan, rows)
    about = {
        "plan": plan.model_dump(mode="json", exclude={"runs", "published"}),
        "runs": {r.name: {"train_diffs": run.adapter.meta.get("train_diffs"), "recipe": _told(run)}
                 for r, run in zip(recipes, runs, strict=True)},
        "base": base.fingerprint,
        "dtype": str(base.model.dtype),
        "judge": judge.name,
        "ungraded": sum(row.get("ungraded", 0) for row in rows),
        "versions": versions(),
    }  # fmt: skip
    try:
        _write(folder / "table.md", table.encode())
        _write(folder / "about.json", json.dumps(about, indent=2).encode())
        lines = [json.dumps({k: v for k, v in row.items() if k not in ("answers", "key")}) for row in rows]
        _write(folder / "rows.jsonl", "".join(f"{line}\n" for line in lines).encode())
        single = [{"condition": r["condition"], "reader": r["reader"]} | a for r in rows for a in r.get("answers", [])]
        text = "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in single)
        _write(folder / "answers.jsonl.xz", lzma.compress(text.encode(), preset=9))
    except OSError as error:
        raise ValueError(f"cannot write to {folder}: {error.strerror}. Give another folder with --out.") from None
    draw(plan, rows, folder / "figure.svg")
    return table


def _told(run: Run) -> dict[str, Any]:
    """The settings that the run's adapter was trained with, its seed among them; no paths of the machine."""
    told = dict(run.adapter.meta["recipe"])
    given = told["synthesize"].get("conversations")
    return told | {"synthesize": told["synthesize"] | {"conversations": given and Path(given).name}}


def _guesser(base: Base, plan: Experiment) -> Guesser | None:
    if not plan.guesser:
        return None
    if plan.guesser == "base":
        return Guesser(LocalModel(base, batch=4), max_tokens=24)  # each prompt holds twenty replies; it can't think
    return Guesser(CachedModel(open_llm(plan.guesser), cache_dir() / "guesses" / f"{seed_of(plan.guesser)}.jsonl"))


def _write(path: Path, data: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(data)
