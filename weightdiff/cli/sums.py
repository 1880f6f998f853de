"""Commands that add, subtract and compare diffs, exactly on their factors."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from weightdiff.cli.common import (
    DIFF,
    BaseOption,
    DeviceOption,
    ForceOption,
    PickleOption,
    app,
    load,
    new_place,
    out,
    working,
)
from weightdiff.printable import shown

First = Annotated[str, typer.Argument(help=DIFF)]
Second = Annotated[str, typer.Argument(help="Another one.")]
Destination = Annotated[Path, typer.Argument(metavar="DST", help="FILE.safetensors, or a folder for PEFT.")]


def _combine(
    first: str, second: str, to_path: Path, base: str, device: str, sign: float, allow_pickle: bool, force: bool
) -> None:
    from weightdiff.arithmetic import add as add_diffs
    from weightdiff.convert import convert
    from weightdiff.source import load_diff

    new_place(to_path, force)
    model = load(base, device)
    one, other = (load_diff(source, model, allow_pickle=allow_pickle) for source in (first, second))
    change = add_diffs(one, other.scaled(sign))
    convert(change, to_path, to="safetensors" if to_path.suffix == ".safetensors" else "peft", base=model)
    out.print(f"{shown(to_path)}: norm {change.norm():.3f}, of norms {one.norm():.3f} and {other.norm():.3f}")


@app.command()
def add(
    first: First,
    second: Second,
    to_path: Destination,
    base: BaseOption = "smollm2",
    device: DeviceOption = "auto",
    allow_pickle: PickleOption = False,
    force: ForceOption = False,
) -> None:
    """Write the change that two diffs make together."""
    _combine(first, second, to_path, base, device, 1.0, allow_pickle, force)


@app.command()
def subtract(
    first: First,
    second: Second,
    to_path: Destination,
    base: BaseOption = "smollm2",
    device: DeviceOption = "auto",
    allow_pickle: PickleOption = False,
    force: ForceOption = False,
) -> None:
    """Write what the first diff changes beyond the second."""
    _combine(first, second, to_path, base, device, -1.0, allow_pickle, force)


@app.command()
def compare(
    diffs: Annotated[list[str], typer.Argument(help=DIFF)],
    base: BaseOption = "smollm2",
    allow_pickle: PickleOption = False,
) -> None:
    """Show the norm of each diff and the cosine of each two."""
    from weightdiff.arithmetic import cosine
    from weightdiff.source import find_diffs

    found = find_diffs(diffs, allow_pickle=allow_pickle)
    if len(found) < 2:
        raise ValueError(f"one diff given, {found[0].name}; expected at least two to compare.")
    model = load(base)  # it knows which names are the same module's
    loaded = [one.load(model) for one in found]
    table = Table("", "diff", "norm", *map(str, range(1, len(found) + 1)), title="cosine of the changes")
    for i, (one, diff) in enumerate(zip(found, loaded, strict=True)):
        cells = [f"{cosine(diff, other):.3f}" for other in loaded[:i]]
        table.add_row(str(i + 1), shown(one.name), f"{diff.norm():.3f}", *cells, "1")
    out.print(table)


@app.command()
def nearest(
    diff: First,
    store: Annotated[Path, typer.Argument(help="A store of diffs.")],
    count: Annotated[int, typer.Option(min=1, help="How many.")] = 5,
    base: BaseOption = "smollm2",
    allow_pickle: PickleOption = False,
) -> None:
    """Show the diffs of a store that are most like this one."""
    from weightdiff.arithmetic import nearest as nearest_diffs
    from weightdiff.source import find_diffs
    from weightdiff.store import Store

    found, there = find_diffs([diff], allow_pickle=allow_pickle), Store(store)
    if len(found) > 1:
        raise ValueError(f"{diff} holds {len(found)} diffs; name one, as in {found[0].name}.")
    with working(f"comparing with {len(there.ids())} diffs"):
        likest = nearest_diffs(found[0].load(load(base)), there, count)
    for identity, value in likest:
        out.print(f"cosine {value:+.3f}  {shown(identity)}", highlight=False)
