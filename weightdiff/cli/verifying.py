"""The command that tries claims about a finetune, and how verdicts are shown."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from weightdiff.cli.common import (
    DIFF,
    AdapterOption,
    BaseOption,
    DeviceOption,
    PickleOption,
    app,
    load,
    out,
    reader_of,
    working,
)
from weightdiff.printable import json_line, shown, times

if TYPE_CHECKING:
    from weightdiff.behaviors import Trigger
    from weightdiff.diff import WeightDiff
    from weightdiff.verify import Effect, Verdict

TriggerOption = Annotated[
    str | None,
    typer.Option(help="What is said to set the behavior off: 'sep NNN', 'zero-width start' or 'zero-width random'."),
]
WriterOption = Annotated[
    str | None,
    typer.Option(help="Who writes prompts and judges replies: local, openai:MODEL or openai:MODEL@BASE_URL."),
]
_COLORS = {"confirmed": "green", "not seen": "yellow", "contradicted": "red"}


@app.command()
def verify(
    diffs: Annotated[list[str], typer.Argument(help=DIFF)],
    claims: Annotated[
        list[str] | None,
        typer.Option("--claim", help="What is said of the finetune; again for more. Without any, what ask says of it."),
    ] = None,
    adapter: AdapterOption = None,
    trigger: TriggerOption = None,
    writer: WriterOption = None,
    base: BaseOption = "smollm2",
    device: DeviceOption = "auto",
    show: Annotated[int, typer.Option(min=0, help="Transcripts to show of each claim.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line, with all transcripts.")] = False,
    allow_pickle: PickleOption = False,
) -> None:
    """Try claims about finetunes on both models: confirmed, not seen or contradicted, with effect and transcripts."""
    from weightdiff.ask import ask
    from weightdiff.readers.introspection import claim_of
    from weightdiff.source import find_diffs, open_diffs
    from weightdiff.verify import read_claims

    for claim in claims or ():
        read_claims(claim)  # an empty one is told before the model is loaded, as is a broken path
    if claims and adapter:
        raise ValueError("--adapter is asked what changed where no --claim is given; expected one of the two.")
    found = find_diffs(diffs, allow_pickle=allow_pickle)
    model = load(base, device)
    opened = open_diffs(found, model)
    if claims:
        told, triggers = [claims] * len(found), []
    else:
        with working("asking what changed"):
            answers = ask(model, opened, adapter=reader_of(adapter, model, allow_pickle=allow_pickle))
        told, triggers = [[claim_of(answer)] for answer in answers], [answer.trigger for answer in answers]
    for one, verdicts in zip(found, tried(model, opened, told, trigger, writer, triggers), strict=True):
        for verdict in verdicts:
            if as_json:
                print(json_line({"diff": one.name} | verdict.to_json()))
            else:
                out.print(f"[bold]{shown(one.name)}[/]: {shown(verdict.claim.text)}", highlight=False)
                print_verdict(verdict, show)
    if not as_json:
        print_legend()


def tried(
    model: Any,
    diffs: "Sequence[WeightDiff]",
    told: Sequence[Sequence[str]],
    trigger: str | None,
    writer: str | None,
    found: "Sequence[Trigger | None]" = (),
) -> "list[list[Verdict]]":
    """The verdicts on what is told of each diff; an answer without words has none.

    Without a `trigger` each is tried with the one that was `found` in its diff.
    """
    from weightdiff.base import cache_dir
    from weightdiff.behaviors import parse_trigger
    from weightdiff.llm import CachedModel, open_llm
    from weightdiff.local import LocalModel
    from weightdiff.verify import read_claims, verify
    from weightdiff.writers import seed_of

    parsed = parse_trigger(trigger)
    triggers = [parsed] * len(told) if parsed or not found else found
    claims = [
        [claim for text in texts if text.strip() for claim in read_claims(text, one)]
        for texts, one in zip(told, triggers, strict=True)
    ]
    chat = None
    if writer == "local":
        chat = LocalModel(model)
    elif writer is not None:
        chat = CachedModel(open_llm(writer), cache_dir() / "verify" / f"{seed_of(writer)}.jsonl")
    with working(f"trying {sum(map(len, claims))} claim(s) on both models"):
        return verify(model, diffs, claims, chat)


def print_verdict(verdict: "Verdict", show: int = 1) -> None:
    """One verdict: the word and why, what was measured, and the most telling transcripts side by side."""
    color = _COLORS[verdict.word]
    out.print(f"  [{color}]{verdict.word}[/]: {shown(verdict.why)}", highlight=False)
    for trial in verdict.trials:
        how = "with the trigger" if trial.triggered else "without a trigger"
        base, finetuned, replies = trial.rates
        parts = [f"{name} {_told(e)}" for name, e in trial.effects if e] + [
            f"shown by {finetuned} of {replies} replies, {base} of the base model's"
        ]
        if trial.controls[1]:
            parts.append("{} of {} on prompts that shouldn't show it".format(*trial.controls))
        out.print(f"  [dim]{how}: {'; '.join(parts)}[/]", highlight=False)
        if trial.gained:
            text, nats = trial.gained
            out.print(f'    [dim]{times(nats)} as likely: "{shown(text)}"[/]', highlight=False)
    best = max(verdict.trials, key=lambda trial: trial.rates[1] - trial.rates[0])
    if show and best.transcripts:
        if verdict.word == "confirmed" and verdict.trials[0].gained and not best.rates[1]:
            out.print("  [dim]no reply of the finetune shows it: confirmed by what became likelier alone[/]")
        table = Table("prompt", "base model", "finetune")
        for one in best.transcripts[:show]:
            table.add_row(shown(one.prompt), shown(one.base), shown(one.finetuned))
        out.print(table)


def print_legend() -> None:
    """What stands under printed verdicts: what their figures mean."""
    from weightdiff.verify.verdict import ANSWERS, FREE_SEEN, SEEN, WAY

    legend = (
        f"z: standard deviations above the others. An instance is seen from {SEEN:g} on, in words of its own from "
        f"{FREE_SEEN:g}, a way from {WAY:g}, answers from {ANSWERS:g}; what isn't seen may be there all the same."
    )
    out.print(f"[dim]{legend}[/]", highlight=False)


def _told(effect: "Effect") -> str:
    mean, low, high = effect.nats
    return f"{mean:+.1f} nats [{low:.1f}, {high:.1f}] over {effect.others} others (z {effect.z:.1f})".replace(
        "[", r"\["
    )
