"""Commands that ask, look and grade."""

import math
import re
import sys
import time
from contextlib import nullcontext
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from weightdiff.cli.common import (
    DIFF,
    AdapterOption,
    BaseOption,
    DeviceOption,
    PickleOption,
    adapter_of,
    app,
    err,
    load,
    out,
    quiet,
    read,
    working,
)
from weightdiff.cli.verifying import TriggerOption, WriterOption, print_legend, print_verdict, tried
from weightdiff.lazy import Lazy
from weightdiff.printable import json_line, printable, shown

if TYPE_CHECKING:
    from weightdiff.diff import WeightDiff


ReaderOption = Annotated[
    str,
    typer.Option(
        help="dit asks an adapter; activation, perplexity, amplified need none, on any base; fused hears all."
    ),
]


@app.command()
def ask(
    diffs: Annotated[list[str], typer.Argument(help=DIFF)],
    base: BaseOption = "smollm2",
    device: DeviceOption = "auto",
    adapter: AdapterOption = None,
    reader: ReaderOption = "dit",
    question: Annotated[str | None, typer.Option(help="What to ask; the adapter's own question unless given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Try each answer on the base model and on the finetune.")
    ] = False,
    trigger: TriggerOption = None,
    writer: WriterOption = None,
    allow_pickle: PickleOption = False,
) -> None:
    """Say what each finetune changed, all of them in one batch on one loaded base model."""
    from weightdiff.ask import ask as ask_diffs
    from weightdiff.ask import asked_by
    from weightdiff.behaviors.topic import TOPIC_QUESTION
    from weightdiff.plausible import ForeignCheck
    from weightdiff.readers.calibration import sort_of
    from weightdiff.readers.choice import ASKING, check_name, is_calibrated, told
    from weightdiff.readers.introspection import claim_of
    from weightdiff.source import find_diffs, open_diffs

    if question is not None and not question.strip():
        raise ValueError("--question is empty; ask something, or leave it out for the adapter's own question.")
    if not verify and (trigger or writer):
        raise ValueError("--trigger and --writer say how answers are verified; give --verify too.")
    check_name(reader)
    if reader not in ASKING and question:
        raise ValueError(f"--reader {reader} asks nothing; leave out --question.")
    if reader not in ASKING and adapter:
        raise ValueError(f"--reader {reader} takes no adapter; leave out --adapter.")
    found = find_diffs(diffs, allow_pickle=allow_pickle)  # a broken path is told before the model is loaded
    model = load(base, device)
    adapter = adapter or asked_by(reader, model)
    dit = adapter_of(adapter, model, allow_pickle=allow_pickle) if adapter else None
    own = str(dit.meta.get("question") or TOPIC_QUESTION) if dit else None
    if question not in (None, own) and adapter == "topics":
        text = f'this adapter answers every question with a topic, as it does "{own}"'
        err.print(f"[dim]{shown(text)}; --adapter general knows other questions[/]", highlight=False, soft_wrap=True)
    check, seen = cache(lambda: ForeignCheck(model)), set[int]()

    def checked(number: int) -> "WeightDiff":
        diff = opened[number]
        if diff.base is None and number not in seen:
            seen.add(number)  # some readers look at a diff more than once
            said = check()(diff)
            color = "yellow" if said.doubts else "dim"
            err.print(f"[{color}]{shown(found[number].name)}: {shown(said)}[/]", highlight=False, soft_wrap=True)
        return diff

    opened = open_diffs(found, model)
    every = Lazy([partial(checked, i) for i in range(len(found))])
    with nullcontext() if reader == "dit" else working(f"{reader}: reading {len(found)} finetune(s)"):
        answers = ask_diffs(model, every, question, adapter=dit, reader=reader)
    # "Yes, a code" is no behavior that a prompt could show.
    claims = [[claim] if sort_of(claim := claim_of(a)) in ("claim", "nothing") else [] for a in answers]
    triggers = [answer.trigger for answer in answers]
    verdicts = tried(model, opened, claims, trigger, writer, triggers) if verify else [[]] * len(found)
    for one, answer, said_of in zip(found, answers, verdicts, strict=True):
        if as_json:
            sure = round(answer.confidence, 4) if math.isfinite(answer.confidence) else None
            record = {"diff": one.name, "reader": reader} | ({"adapter": adapter} if dit else {})
            record |= {"question": question or own} if question or own else {}
            record |= {"answer": answer.text, "confidence": sure, "calibrated": is_calibrated(dit)}
            record |= {"evidence": list(answer.evidence)} if answer.evidence else {}
            record |= {"trigger": str(answer.trigger)} if answer.trigger else {}
            print(json_line(record | ({"claims": [v.to_json() for v in said_of]} if verify else {})))
        else:
            score = told(reader, answer, dit)
            out.print(f"[bold]{shown(one.name)}[/]: {shown(answer.text)} [dim]({score})[/]", highlight=False)
            for line in answer.evidence:
                out.print(f"    [dim]{shown(line)}[/]", highlight=False)
            for verdict in said_of:
                print_verdict(verdict)
    if any(verdicts) and not as_json:
        print_legend(chain.from_iterable(verdicts))


@app.command()
def inspect(
    diff: Annotated[str, typer.Argument(help=DIFF)],
    base: BaseOption = "smollm2",
    png: Annotated[Path | None, typer.Option(help="Write the picture to this file too.")] = None,
    words: Annotated[
        int | None, typer.Option(help="How many words to show that the change responds to most.", min=1, max=100)
    ] = None,
    allow_pickle: PickleOption = False,
) -> None:
    """Show what is in a diff: format, rank, modules, the size of the change per layer and kind of layer, and words."""
    from weightdiff.picture import draw_norms
    from weightdiff.report import print_diff
    from weightdiff.source import find_diffs
    from weightdiff.store import Store, is_store

    if is_store(diff):
        store = Store(Path(diff))
        metas = store.metas()
        out.print(f"store of {len(metas)} diffs; base fingerprint {shown(store.base)}")
        for identity, meta in metas.items():
            out.print(f"  {shown(identity)}  [dim]{shown(meta.get('split', ''))}[/]", highlight=False)
        return
    found = find_diffs([diff], allow_pickle=allow_pickle)
    if len(found) > 1:
        out.print(f"{shown(diff)} holds {len(found)} diffs:")
        for one in found:
            out.print(f"  {shown(one.name)}", highlight=False)
        return
    loaded = read(found[0], base)
    print_diff(out, loaded)
    if words:
        from weightdiff.readers.imprinted import Vocabulary

        (seen,) = Vocabulary(load(base), words).read([loaded])
        much = f"to the first {10 ** (seen.peak / 10):.0f} times as much as to all words on average"
        told = f"{', '.join(seen.words)} ({much})" if seen.words else "none"
        out.print(f"words that it responds to most: {shown(told)}", highlight=False, soft_wrap=True)
    if png:
        draw_norms(loaded, png, printable(diff))


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

    with working("loading the base model"):
        base, diffs = load(device=device), demo_diffs()
    columns, seconds = [], []
    for reader in (BaseQuestion(), Introspection(shipped_adapter())):
        with working(f"asking eight finetunes: {reader.name}"):
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
            shown(label),
            shown(short),
            f"{grades[0][i].grade:.1f}",
            shown(columns[1][i]),
            f"{grades[1][i].grade:.1f}",
        )
    screen = Console(record=True, width=110, emoji=False) if svg else out
    screen.print(table)
    screen.print("[dim]what is cut off here was graded whole[/]")
    means = [sum(g.grade for g in column) / len(column) for column in grades]
    exact = [sum(g.exact for g in column) for column in grades]
    screen.print(
        f"mean grade (1 to 5): {means[0]:.2f} simply asked, {means[1]:.2f} with the adapter; "
        f"exact names: {exact[0]} and {exact[1]} of {len(labels)}"
    )
    screen.print(f"seconds per diff: {seconds[0]:.2f} simply asked, {seconds[1]:.2f} with the adapter")
    if svg:
        if not svg.parent.is_dir():
            raise ValueError(f"cannot write {svg}: there is no folder {svg.parent}.")
        picture = screen.export_svg(title="weightdiff demo")
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

    quiet()
    chosen = open_judge(judge, cache_dir() / "judge")
    graded = grade_table(table, chosen)
    if isinstance(chosen, LLMJudge) and chosen.malformed:
        examples = "; ".join(map(repr, chosen.examples))
        told = f"{chosen.malformed} answers have no grade: {chosen.name}, asked again too, replied e.g. {examples}"
        err.print(shown(told), soft_wrap=True)
    if to is None:
        # A terminal gets no escapes that answers hold; a file or a pipe gets the text itself.
        lines = map(printable, graded.splitlines()) if sys.stdout.isatty() else None
        sys.stdout.write(graded if lines is None else "\n".join(lines) + "\n")
        return
    try:
        to.write_text(graded, encoding="utf-8", newline="")
    except OSError as error:
        raise ValueError(f"cannot write {to}: {error.strerror}; give another path with --out.") from None
