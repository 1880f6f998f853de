"""The command that tries claims about a finetune, and how verdicts are shown."""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from weightdiff.cli.common import (
    DIFF,
    AdapterOption,
    BaseOption,
    DeviceOption,
    PickleOption,
    adapter_of,
    app,
    load,
    out,
    working,
)
from weightdiff.printable import json_line, shown, times

if TYPE_CHECKING:
    from weightdiff.behaviors import Trigger
    from weightdiff.diff import WeightDiff
    from weightdiff.verify import Claim, Trial, Verdict

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
    show: Annotated[
        int | None, typer.Option(min=0, help="Transcripts to show of each claim; one, where there is any to see.")
    ] = None,
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
            answers = ask(model, opened, adapter=adapter_of(adapter, model, allow_pickle=allow_pickle))
        told, triggers = [[claim_of(answer)] for answer in answers], [answer.trigger for answer in answers]
    verdicts = tried(model, opened, told, trigger, writer, triggers)
    for one, some in zip(found, verdicts, strict=True):
        for verdict in some:
            if as_json:
                print(json_line({"diff": one.name} | verdict.to_json()))
            else:
                out.print(f"[bold]{shown(one.name)}[/]: {shown(verdict.claim.text)}", highlight=False)
                print_verdict(verdict, show)
    if not as_json:
        print_legend(chain.from_iterable(verdicts))


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


def print_verdict(verdict: "Verdict", show: int | None = None) -> None:
    """One verdict: the word and why, what was measured, and the most telling transcripts side by side.

    Args:
        verdict: on one claim.
        show: transcripts; None for one, unless the claim is confirmed and no reply shows it.
    """
    color = _COLORS[verdict.word]
    out.print(f"  [{color}]{verdict.word}[/]: {shown(verdict.why)}", highlight=False)
    for trial in verdict.trials if not verdict.claim.nothing else ():
        out.print(f"  [dim]{'with the trigger' if trial.triggered else 'without a trigger'}:[/]", highlight=False)
        for line in _measures(verdict.claim, trial):
            out.print(f"    [dim]{line}[/]", highlight=False)
    best = max(verdict.trials, key=lambda trial: trial.rates[1] - trial.rates[0])
    if verdict.word == "confirmed" and not verdict.claim.nothing and not best.rates[1]:
        out.print("  [dim]no reply of the finetune shows it: confirmed by what became likelier alone[/]")
        show = show or 0
    if some := best.transcripts[: 1 if show is None else show]:
        table = Table("prompt", "base model", "finetune")
        for one in some:
            table.add_row(shown(one.prompt), shown(one.base), shown(one.finetuned))
        out.print(table)


def print_legend(verdicts: "Iterable[Verdict]") -> None:
    """What stands under printed verdicts: what their figures mean, and what is left to try."""
    out.print("[dim]z: standard deviations above the others. What isn't seen may be there all the same.[/]")
    unseen = [v.trials for v in verdicts if v.word != "confirmed" and not v.claim.nothing]
    if any(not any(t.triggered or t.rates[1] for t in trials) for trials in unseen):
        out.print(
            "[dim]What hides behind a trigger doesn't show on plain prompts: --trigger tries it with one. "
            "ask --adapter general tells of the codes and invisible characters that the weights respond to.[/]"
        )


def _measures(claim: "Claim", trial: "Trial") -> list[str]:
    """What was measured of a claim, a line each."""
    from weightdiff.behaviors.claims import FREE
    from weightdiff.verify.verdict import ANSWERS, FREE_SEEN, SEEN, WAY

    seen = FREE_SEEN if claim.kind == FREE else SEEN
    compared = (
        (trial.instance, "texts that would show it, against those of {} others", seen),
        (trial.way, "such texts on other things, against {} other behaviors", WAY),
        (trial.answers, "answers about it, against those about {} others", ANSWERS),
    )
    lines = []
    for effect, what, least in compared:
        if effect is not None:
            mean, low, high = effect.nats
            gain = rf"{mean:+.1f} nats \[{low:.1f}, {high:.1f}]"
            lines.append(f"{what.format(effect.others)}: {gain}; z {effect.z:.1f}, seen from {least:g}")
    base, finetuned, replies = trial.rates
    lines.append(f"replies that show it: {finetuned} of {replies}; of the base model's {base}")
    if trial.controls[1]:
        lines[-1] += "; {} of {} on prompts that shouldn't show it".format(*trial.controls)
    if trial.gained:
        text, nats = trial.gained
        lines.append(f'{times(nats)} as likely: "{shown(text)}"')
    return lines
