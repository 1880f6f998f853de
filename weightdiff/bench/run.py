"""Run an experiment: make what its runs lack, ask, grade, and write table, figure, rows and answers into one folder."""

import json
import lzma
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from weightdiff.atomic import replacing
from weightdiff.base import Base, cache_dir
from weightdiff.bench.experiments import EXPERIMENTS, Bench, Experiment
from weightdiff.bench.rows import Rows, Run
from weightdiff.bench.tables import draw, markdown
from weightdiff.llm import CachedModel, ChatModel, open_llm
from weightdiff.llm_judge import open_judge
from weightdiff.local import LocalModel
from weightdiff.recipe import Recipe, explain, load_recipe
from weightdiff.store import Store


def is_experiment(path: str | Path) -> bool:
    """Is this TOML file an experiment, and not the recipe of a run? A file that can't be read is none."""
    try:
        return "experiment" in tomllib.loads(Path(path).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return False


def load_experiment(path: str | Path) -> Experiment:
    """Read an experiment; the recipes of its runs lie where it says, seen from its own folder.

    Raises:
        ValueError: no such file, not TOML, a field or an experiment that isn't known, or too few runs for it.
    """
    path = Path(path)
    try:
        plan = Experiment.model_validate(tomllib.loads(path.read_text("utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"cannot read the experiment {path}: {error}.") from None
    except ValidationError as error:
        raise ValueError(f"{path}: {explain(error, Experiment)}") from None
    if plan.experiment not in EXPERIMENTS:
        raise ValueError(f"{path}: there is no experiment {plan.experiment!r}; there are {', '.join(EXPERIMENTS)}.")
    single = plan.experiment in ("data scaling", "rank transfer", "unseen triggers", "reporting the trigger")
    if single and len(plan.runs) != 1:
        raise ValueError(f"{path}: {plan.experiment!r} asks one run, and runs names {len(plan.runs)}.")
    return plan.model_copy(update={"runs": tuple(path.parent / run for run in plan.runs)})


def run_experiment(
    base: Base,
    plan: Experiment,
    folder: Path,
    seen: Callable[[dict[str, Any]], None] = lambda row: None,
) -> str:
    """Ask what the experiment asks, of runs whose adapters are trained.

    Args:
        base: the base model of the runs.
        plan: the experiment.
        folder: where `table.md`, `figure.svg`, `rows.jsonl`, `answers.jsonl.xz` and `about.json` go.
        seen: told each row as it comes.

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
    bench = Bench(plan, runs, Rows(base, judge, work, note), _guesser(base, plan))
    EXPERIMENTS[plan.experiment](bench)
    table = markdown(plan, rows)
    about = {
        "experiment": plan.experiment,
        "runs": {r.name: {"train_diffs": run.adapter.meta.get("train_diffs"), "recipe": _told(r)}
                 for r, run in zip(recipes, runs, strict=True)},
        "base": base.fingerprint,
        "dtype": str(base.model.dtype),
        "judge": judge.name,
        "malformed_judge_replies": getattr(judge, "malformed", 0),
        "versions": {p: metadata.version(p) for p in ("torch", "transformers", "weightdiff")},
    }  # fmt: skip
    try:
        _write(folder / "table.md", table.encode())
        _write(folder / "about.json", json.dumps(about, indent=2).encode())
        lines = [json.dumps({k: v for k, v in row.items() if k not in ("answers", "key")}) for row in rows]
        _write(folder / "rows.jsonl", "".join(f"{line}\n" for line in lines).encode())
        _write(folder / "answers.jsonl.xz", lzma.compress(_answers(rows, work).encode(), preset=9))
    except OSError as error:
        raise ValueError(f"cannot write to {folder}: {error.strerror}. Give another folder with --out.") from None
    draw(plan, rows, folder / "figure.svg")
    return table


def _answers(rows: list[dict[str, Any]], work: Path) -> str:
    """Every answer of the table's graded rows, and of the others without a grade."""
    wanted = {(row["condition"], row["reader"]) for row in rows}
    path = work / "answers.jsonl"
    graded = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    # A row that was asked again, of another adapter say, has older answers before it.
    last = {(a["condition"], a["reader"], a["diff"]): a for a in graded if (a["condition"], a["reader"]) in wanted}
    plain = [
        {"condition": row["condition"], "reader": row["reader"], "answer": text}
        for row in rows
        if "grade" not in row
        for text in row.get("answers", [])
    ]
    return "".join(json.dumps(a, ensure_ascii=False) + "\n" for a in [*last.values(), *plain])


def _told(recipe: Recipe) -> dict[str, Any]:
    """The recipe's settings, its seed among them; of the conversations' file the name alone."""
    told = recipe.model_dump(mode="json")
    given = recipe.synthesize.conversations
    return told | {"synthesize": told["synthesize"] | {"conversations": given and given.name}}


def _guesser(base: Base, plan: Experiment) -> ChatModel | None:
    if not plan.guesser:
        return None
    if plan.guesser == "base":
        return LocalModel(base, batch=4)  # each prompt holds twenty replies
    return CachedModel(open_llm(plan.guesser), cache_dir() / "guesses.jsonl")


def _write(path: Path, data: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(data)
