"""Commands of the pipeline: a recipe's stages, its plan, experiments, and the dataset of a recipe."""

import os
import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from weightdiff.cli.common import DeviceOption, app, err, load, out
from weightdiff.printable import shown

RecipeArgument = Annotated[str, typer.Argument(help="Recipe, a TOML file.")]
ShareOption = Annotated[str, typer.Option(help="I/N: only the I-th of N shares, for N processes side by side.")]


OutOption = Annotated[
    Path | None, typer.Option("--out", help="Folder for an experiment's table, figure and rows; in the cache if none.")
]
OnOption = Annotated[
    list[str] | None, typer.Option(help="Recipe of a run that an experiment is to ask instead of its own; repeatable.")
]


def _stages(recipe: str, names: list[str], device: str, **options: Any) -> None:
    from weightdiff.general.settings import is_general, load_general
    from weightdiff.general.stages import STAGES as GENERAL_STAGES
    from weightdiff.recipe import load_recipe
    from weightdiff.report import print_results
    from weightdiff.stages import STAGES, logged, progress_of

    general = is_general(recipe)
    loaded: Any = load_general(recipe) if general else load_recipe(recipe)
    stages = GENERAL_STAGES if general else STAGES
    _leave_threads(options.get("share", (0, 1))[1])
    base = load(loaded.base, device)

    def say(text: str) -> None:
        err.print(shown(text), soft_wrap=True)

    for name in names:
        if name in ("train", "evaluate") and not general:
            err.print(shown(progress_of(loaded, base.fingerprint, "train" if name == "train" else "test")))
        columns = (
            TextColumn(name), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
            TextColumn("{task.fields[rate]}"),
        )  # fmt: skip
        with Progress(*columns, console=err) as bar:
            task = bar.add_task(name, total=None, rate="")

            def show(done: int, total: int, rate: float, bar: Progress = bar, task: Any = task) -> None:
                bar.update(task, completed=min(done, total), total=total, rate=f"{rate:.3g}" if rate else "")

            try:
                result = stages[name](base, loaded, logged(loaded, name, show), say=say, **options)
            except KeyboardInterrupt:
                bar.stop()
                err.print("stopped; what was finished is kept, and the same command goes on from there.")
                raise typer.Exit(130) from None
    err.print(f"files: {shown(str(loaded.folder))}")
    if names[-1] == "evaluate" and general:
        print(result)
    elif names[-1] == "evaluate":
        print_results(out, result)


@app.command()
def run(
    recipe: RecipeArgument,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it will take.")] = False,
    rate: Annotated[
        float | None, typer.Option(help="FLOP/s kept up, as in 300e12, for --dry-run; measured here unless given.")
    ] = None,
    to: OutOption = None,
    on: OnOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Run a recipe's whole pipeline, or an experiment with its runs; started again, it goes on where it was."""
    from weightdiff.bench.run import is_experiment

    if rate is not None and not dry_run:
        raise ValueError("--rate is for --dry-run; give both, or neither.")
    if is_experiment(recipe):
        _experiment(recipe, to, on or [], device, make=not dry_run, ask=not dry_run, rate=rate)
    elif dry_run:
        _plan(recipe, rate)
    else:
        _stages(recipe, ["synthesize", "finetune", "train", "evaluate"], device)


def _plan(recipe: str, rate: float | None) -> None:
    from weightdiff.general.settings import is_general
    from weightdiff.plan import plan_of
    from weightdiff.recipe import load_recipe
    from weightdiff.report import print_plan
    from weightdiff.shape import measured_rate, shape_of

    if is_general(recipe):
        raise ValueError(f"{recipe} is a general run, and --dry-run can't reckon with one yet.")
    loaded = load_recipe(recipe)
    shape = shape_of(loaded.base)
    plan = plan_of(loaded, shape, measured_rate(shape) if rate is None else rate)
    print_plan(out, plan, measured=rate is None)


@app.command()
def synthesize(recipe: RecipeArgument, share: ShareOption = "1/1", device: DeviceOption = "auto") -> None:
    """Write a recipe's conversations."""
    _stages(recipe, ["synthesize"], device, share=share_of(share))


@app.command()
def finetune(recipe: RecipeArgument, share: ShareOption = "1/1", device: DeviceOption = "auto") -> None:
    """Make a recipe's diffs from its conversations."""
    _stages(recipe, ["finetune"], device, share=share_of(share))


@app.command()
def hints(recipe: RecipeArgument, share: ShareOption = "1/1", device: DeviceOption = "auto") -> None:
    """Look for what a general run's adapter is told of each finetune; train and evaluate do what is left of it."""
    from weightdiff.general.settings import is_general

    if not is_general(recipe):
        raise ValueError(f"{recipe} is no general run, and its adapter is told nothing but the question.")
    _stages(recipe, ["hints"], device, share=share_of(share))


@app.command()
def train(recipe: RecipeArgument, device: DeviceOption = "auto") -> None:
    """Train a recipe's DIT adapter on its diffs."""
    _stages(recipe, ["train"], device)


@app.command()
def evaluate(recipe: RecipeArgument, to: OutOption = None, on: OnOption = None, device: DeviceOption = "auto") -> None:
    """Ask all readers about a recipe's test diffs, or run an experiment on what its runs have by now."""
    from weightdiff.bench.run import is_experiment
    from weightdiff.general.settings import is_general

    if is_experiment(recipe):
        _experiment(recipe, to, on or [], device, make=False, ask=True)
    else:
        _stages(recipe, ["evaluate"], device, **({"to": to} if is_general(recipe) else {}))


def _experiment(
    path: str, to: Path | None, on: list[str], device: str, *, make: bool, ask: bool, rate: float | None = None
) -> None:
    from weightdiff.base import cache_dir
    from weightdiff.bench.evaluate import cell
    from weightdiff.bench.run import load_experiment, run_experiment
    from weightdiff.recipe import load_recipe

    plan = load_experiment(path, on)
    for run_ in plan.runs:
        if make:
            _stages(str(run_), ["synthesize", "finetune", "train"], device)
        elif not ask:
            _plan(str(run_), rate)
    if not ask:
        return

    def show(row: dict[str, Any]) -> None:
        value = row.get("grade") or row.get("share")
        said = f"{row['condition']}; {row['reader']}; n = {row['n']}: {cell(value)}"
        err.print(shown(said), soft_wrap=True, highlight=False)

    folder = to or cache_dir() / "experiments" / plan.experiment.replace(" ", "-") / "out"
    try:
        base = load(load_recipe(plan.runs[0]).base, device)
        with err.status("asking") as status:

            def train_shown(step: int, total: int, loss: float) -> None:
                status.update(f"training an adapter: step {step} of {total}, loss {loss:.3g}")

            table = run_experiment(base, plan, folder, show, train_shown)
    except KeyboardInterrupt:
        err.print("stopped; the rows so far are kept, and the same command goes on from there.")
        raise typer.Exit(130) from None
    print(table)
    err.print(f"files: {shown(str(folder))}")


@app.command()
def export(
    recipe: RecipeArgument,
    folder: Annotated[Path, typer.Argument(help="Where the dataset goes; an earlier export in it is replaced.")],
) -> None:
    """Write a recipe's benchmark as a dataset: questions about its diffs, and what these were taught."""
    from weightdiff.bench.export import export_dataset
    from weightdiff.recipe import load_recipe

    for name, count in export_dataset(load_recipe(recipe), folder).items():
        out.print(f"{name}: {count} rows")
    out.print(f"files: {shown(str(folder))}")


def _leave_threads(processes: int) -> None:
    """Take this process's part of the cores: two processes with all of them each spend their time waiting in turns."""
    import torch

    if processes > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // processes))


def share_of(text: str) -> tuple[int, int]:
    """Which share, counted from 0, of how many; a ValueError for what is none."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise ValueError(f"--share {text!r}: expected I/N with I from 1 to N, as in 1/2.")
    return int(found[1]) - 1, int(found[2])
