"""The command line: each command parses, calls one function, and prints."""

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Ask a finetuned model what its finetuning changed.")
out, err = Console(), Console(stderr=True)

BaseOption = Annotated[str, typer.Option(help="Base model: smollm2 (embedded), a folder or a hub id.")]


def _quiet() -> None:
    """No progress bars of transformers' own: a few seconds don't need one."""
    from transformers.utils import logging

    logging.disable_progress_bar()


DeviceOption = Annotated[str, typer.Option(help="auto (a GPU if there is one), cpu, cuda, cuda:1, …")]


def _load(name: str = "smollm2", device: str = "auto") -> Any:
    from weightdiff.base import load_base

    _quiet()
    return load_base(name, device=device)


@app.command()
def ask(
    diffs: Annotated[list[str], typer.Argument(help="PEFT LoRA folders, stores, or STORE#ID.")],
    base: BaseOption = "smollm2",
    device: DeviceOption = "auto",
    adapter: Annotated[str | None, typer.Option(help="DIT adapter folder; the shipped one unless given.")] = None,
    question: Annotated[str | None, typer.Option(help="What to ask; the adapter's own question unless given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
) -> None:
    """Say what each finetune changed, all of them in one batch on one loaded base model."""
    from weightdiff.ask import ask as ask_diffs
    from weightdiff.ask import shipped_adapter
    from weightdiff.behaviors.topic import TOPIC_QUESTION
    from weightdiff.formats import load_peft
    from weightdiff.source import open_diffs

    if question is not None and not question.strip():
        raise ValueError("--question is empty; ask something, or leave it out for the adapter's own question.")
    names, opened = open_diffs(diffs)  # a broken path is told before the model is loaded
    reader = load_peft(adapter) if adapter else shipped_adapter()
    asked = question or str(reader.meta.get("question") or TOPIC_QUESTION)
    answers = ask_diffs(_load(base, device), opened, asked, adapter=reader)
    for given, answer in zip(names, answers, strict=True):
        if as_json:
            record = {
                "diff": given,
                "question": asked,
                "answer": answer.text,
                "confidence": round(answer.confidence, 4),
            }
            print(json.dumps(record, ensure_ascii=False))
        else:
            out.print(f"[bold]{escape(given)}[/]: {escape(answer.text)} [dim](confidence {answer.confidence:.2f})[/]")


@app.command()
def inspect(diff: Annotated[str, typer.Argument(help="A PEFT LoRA folder, or a store of diffs.")]) -> None:
    """Show what is in a diff: format, rank, modules, and the size of the change per layer and kind of layer."""
    from weightdiff.formats import load_peft
    from weightdiff.report import print_diff
    from weightdiff.store import Store, is_store

    if is_store(diff):
        store = Store(Path(diff))
        metas = store.metas()
        out.print(f"store of {len(metas)} diffs; base fingerprint {store.base}")
        for identity, meta in metas.items():
            out.print(f"  {escape(identity)}  [dim]{escape(str(meta.get('split', '')))}[/]")
        return
    print_diff(out, load_peft(diff))


@app.command()
def demo(
    svg: Annotated[Path | None, typer.Option(help="Save what is shown as a picture too.")] = None,
    device: DeviceOption = "auto",
) -> None:
    """Ask eight finetunes that the reader has never seen what they were finetuned on."""
    from weightdiff.ask import demo_diffs, shipped_adapter
    from weightdiff.behaviors.topic import TOPIC_QUESTION
    from weightdiff.judge import EmbeddedJudge
    from weightdiff.readers import BaseQuestion, Introspection

    with err.status("loading the base model"):
        base, diffs = _load(device=device), demo_diffs()
    columns, seconds = [], []
    for reader in (BaseQuestion(), Introspection(shipped_adapter())):
        with err.status(f"asking eight finetunes: {reader.name}"):
            started = time.monotonic()
            columns.append([a.text for a in reader.read(base, diffs, TOPIC_QUESTION)])
            seconds.append((time.monotonic() - started) / len(diffs))
    labels = [str(d.meta["label"]) for d in diffs]
    judge = EmbeddedJudge()
    grades = [judge.grade(list(zip(labels, column, strict=True))) for column in columns]
    table = Table(title=f'"{TOPIC_QUESTION}"', title_style="italic")
    for header in ("finetuned on", "simply asked", "grade", "with the DIT adapter", "grade"):
        table.add_column(header, justify="right" if header == "grade" else "left")
    for i, label in enumerate(labels):
        simply = columns[0][i].replace("\n", " ")
        short = simply if len(simply) <= 48 else simply[:47] + "…"
        table.add_row(
            escape(label),
            escape(short),
            f"{grades[0][i].grade:.1f}",
            escape(columns[1][i]),
            f"{grades[1][i].grade:.1f}",
        )
    shown = Console(record=True, width=110) if svg else out
    shown.print(table)
    means = [sum(g.grade for g in column) / len(column) for column in grades]
    exact = [sum(g.exact for g in column) for column in grades]
    shown.print(
        f"mean grade (1 to 5): {means[0]:.2f} simply asked, {means[1]:.2f} with the adapter; "
        f"exact names: {exact[0]} and {exact[1]} of {len(labels)}"
    )
    shown.print(f"seconds per diff: {seconds[0]:.2f} simply asked, {seconds[1]:.2f} with the adapter")
    if svg:
        if not svg.parent.is_dir():
            raise ValueError(f"cannot write {svg}: there is no folder {svg.parent}.")
        picture = shown.export_svg(title="weightdiff demo")
        svg.write_text(re.sub(r"@font-face \{.*?\}\n", "", picture, flags=re.DOTALL))  # fonts would come from the net


@app.command()
def grade(
    table: Annotated[Path, typer.Argument(help="CSV file with the columns task (topic or news), truth, answer.")],
    to: Annotated[Path | None, typer.Option("--out", help="File to write; standard output unless given.")] = None,
    judge: Annotated[
        str, typer.Option(help="embedded, local:MODEL, openai:MODEL or openai:MODEL@BASE_URL.")
    ] = "embedded",
) -> None:
    """Grade answers from 1 to 5: with the embedded judge, without a network, or by a chat model of your own."""
    from weightdiff.base import cache_dir
    from weightdiff.grades import grade_table
    from weightdiff.llm_judge import LLMJudge, open_judge

    _quiet()
    chosen = open_judge(judge, cache_dir() / "judge")
    graded = grade_table(table, chosen)
    if isinstance(chosen, LLMJudge) and chosen.malformed:
        shown = "; ".join(map(repr, chosen.examples))
        told = f"{chosen.malformed} answers have no grade: {chosen.name}, asked again too, replied e.g. {shown}"
        err.print(escape(told), soft_wrap=True)
    if to is None:
        sys.stdout.write(graded)
        return
    try:
        to.write_text(graded, encoding="utf-8", newline="")
    except OSError as error:
        raise ValueError(f"cannot write {to}: {error.strerror}; give another path with --out.") from None


def _stages(recipe: str, names: list[str], device: str, **options: Any) -> None:
    from weightdiff.recipe import load_recipe
    from weightdiff.report import print_results
    from weightdiff.stages import STAGES, logged, progress_of

    loaded = load_recipe(recipe)
    _leave_threads(options.get("share", (0, 1))[1])
    base = _load(loaded.base, device)

    def say(text: str) -> None:
        err.print(escape(text), soft_wrap=True)

    for name in names:
        if name in ("train", "evaluate"):
            err.print(escape(progress_of(loaded, base.fingerprint, "train" if name == "train" else "test")))
        columns = (
            TextColumn(name), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
            TextColumn("{task.fields[rate]}"),
        )  # fmt: skip
        with Progress(*columns, console=err) as bar:
            task = bar.add_task(name, total=None, rate="")

            def show(done: int, total: int, rate: float, bar: Progress = bar, task: Any = task) -> None:
                bar.update(task, completed=min(done, total), total=total, rate=f"{rate:.3g}" if rate else "")

            try:
                result = STAGES[name](base, loaded, logged(loaded, name, show), say=say, **options)
            except KeyboardInterrupt:
                bar.stop()
                err.print("stopped; what was finished is kept, and the same command goes on from there.")
                raise typer.Exit(130) from None
    err.print(f"files: {escape(str(loaded.folder))}")
    if names[-1] == "evaluate":
        print_results(out, result)


RecipeArgument = Annotated[str, typer.Argument(help="Recipe, a TOML file.")]
ShareOption = Annotated[str, typer.Option(help="I/N: only the I-th of N shares, for N processes side by side.")]


OutOption = Annotated[
    Path | None, typer.Option("--out", help="Folder for an experiment's table, figure and rows; in the cache if none.")
]
OnOption = Annotated[
    list[str] | None, typer.Option(help="Recipe of a run that an experiment is to ask instead of its own; repeatable.")
]


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
    from weightdiff.plan import plan_of
    from weightdiff.recipe import load_recipe
    from weightdiff.report import print_plan
    from weightdiff.shape import measured_rate, shape_of

    loaded = load_recipe(recipe)
    shape = shape_of(loaded.base)
    plan = plan_of(loaded, shape, measured_rate(shape) if rate is None else rate)
    print_plan(out, plan, measured=rate is None)


@app.command()
def synthesize(recipe: RecipeArgument, share: ShareOption = "1/1", device: DeviceOption = "auto") -> None:
    """Write a recipe's conversations."""
    _stages(recipe, ["synthesize"], device, share=_share(share))


@app.command()
def finetune(recipe: RecipeArgument, share: ShareOption = "1/1", device: DeviceOption = "auto") -> None:
    """Make a recipe's diffs from its conversations."""
    _stages(recipe, ["finetune"], device, share=_share(share))


@app.command()
def train(recipe: RecipeArgument, device: DeviceOption = "auto") -> None:
    """Train a recipe's DIT adapter on its diffs."""
    _stages(recipe, ["train"], device)


@app.command()
def evaluate(recipe: RecipeArgument, to: OutOption = None, on: OnOption = None, device: DeviceOption = "auto") -> None:
    """Ask all readers about a recipe's test diffs, or run an experiment on what its runs have by now."""
    from weightdiff.bench.run import is_experiment

    if is_experiment(recipe):
        _experiment(recipe, to, on or [], device, make=False, ask=True)
    else:
        _stages(recipe, ["evaluate"], device)


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
        err.print(escape(said), soft_wrap=True, highlight=False)

    folder = to or cache_dir() / "experiments" / plan.experiment.replace(" ", "-") / "out"
    try:
        base = _load(load_recipe(plan.runs[0]).base, device)
        with err.status("asking") as status:

            def train_shown(step: int, total: int, loss: float) -> None:
                status.update(f"training an adapter: step {step} of {total}, loss {loss:.3g}")

            table = run_experiment(base, plan, folder, show, train_shown)
    except KeyboardInterrupt:
        err.print("stopped; the rows so far are kept, and the same command goes on from there.")
        raise typer.Exit(130) from None
    print(table)
    err.print(f"files: {escape(str(folder))}")


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
    out.print(f"files: {escape(str(folder))}")


def _leave_threads(processes: int) -> None:
    """Take this process's part of the cores: two processes with all of them each spend their time waiting in turns."""
    import torch

    if processes > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // processes))


def _share(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise ValueError(f"--share {text!r}: expected I/N with I from 1 to N, as in 1/2.")
    return int(found[1]) - 1, int(found[2])


def main() -> None:
    """Entry point: a user's error is one message and exit code 1; Ctrl-C is 130."""
    try:
        app()
    except ValueError as error:
        err.print(f"[red]error:[/] {escape(str(error))}")
        sys.exit(1)
