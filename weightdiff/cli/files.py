"""Commands that turn diffs into other files, and take them to and from the hub."""

import math
import re
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weightdiff.cli.common import (
    DIFF,
    AdapterOption,
    BaseOption,
    DeviceOption,
    ForceOption,
    PickleOption,
    adapter_of,
    app,
    load,
    new_place,
    out,
)
from weightdiff.printable import shown

if TYPE_CHECKING:
    from weightdiff.diff import WeightDiff


class Kind(StrEnum):
    peft = "peft"
    safetensors = "safetensors"
    merged = "merged"


DiffArgument = Annotated[str, typer.Argument(help=DIFF)]
RankOption = Annotated[int | None, typer.Option(help="Make factors of at most this rank.", min=1)]
EnergyOption = Annotated[
    float | None, typer.Option(help="Make factors that keep this share of each matrix's squared norm, as in 0.99.")
]
LayersOption = Annotated[str | None, typer.Option(help="Only these blocks, as in 0-9,20.")]


@app.command()
def convert(
    diff: DiffArgument,
    to_path: Annotated[Path, typer.Argument(metavar="DST", help="Folder, or file for safetensors.")],
    to: Annotated[Kind, typer.Option(help="peft folder, one safetensors file, or merged checkpoint.")] = Kind.peft,
    base: BaseOption = "smollm2",
    device: DeviceOption = "auto",
    rank: RankOption = None,
    energy: EnergyOption = None,
    strength: Annotated[float, typer.Option(help="Factor on the change.")] = 1.0,
    layers: LayersOption = None,
    leave_out: Annotated[
        bool, typer.Option("--leave-out", help="Leave out what can't be factors, as norms and embeddings, and say so.")
    ] = False,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16 on disk.")] = None,
    force: ForceOption = False,
    allow_pickle: PickleOption = False,
) -> None:
    """Write a diff as a PEFT folder, as one safetensors file, or merged into its base model."""
    from weightdiff.convert import convert as convert_diff
    from weightdiff.diff import WeightDiff
    from weightdiff.source import load_diff

    new_place(to_path, force, never=to is Kind.merged)
    if not math.isfinite(strength):
        raise ValueError(f"--strength {strength}: expected a number.")
    keep = _in_blocks(layers) if layers else None
    model = load(base, device)
    change = load_diff(diff, model, rank=rank, energy=energy, allow_pickle=allow_pickle).scaled(strength)
    if keep:
        change = change.restricted(keep)
    if leave_out:
        rest = WeightDiff({}, dense=change.dense)
        out.print(
            f"left out: {len(rest.dense)} parameters, {(rest.norm() / (change.norm() or 1)) ** 2:.2%} of the whole"
        )
        change = WeightDiff(change.factors, change.base, change.meta)
    if not (change.factors or change.dense):
        raise ValueError("nothing is left of the diff; does it change the blocks that --layers names?")
    convert_diff(change, to_path, to=to.value, base=model, dtype=dtype)
    kept = change.meta.get("kept_energy")
    told = f"; {kept:.4%} of its matrices' squared norm kept" if isinstance(kept, float) else ""
    out.print(f"{shown(to_path)}: {_size(change)}{told}")


@app.command()
def export_serving(
    to_path: Annotated[Path, typer.Argument(metavar="DST", help="Folder; made if it isn't there.")],
    diffs: Annotated[list[str], typer.Argument(help=DIFF)],
    base: BaseOption = "smollm2",
    device: DeviceOption = "auto",
    adapter: AdapterOption = None,
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16 for the model's files.")] = None,
    allow_pickle: PickleOption = False,
) -> None:
    """For a server of one LoRA per request: the base with the DIT adapter merged in, and each diff as a LoRA."""
    from weightdiff.convert import precision
    from weightdiff.serving import export_serving as export
    from weightdiff.source import find_diffs

    found = find_diffs(diffs, allow_pickle=allow_pickle)
    model = load(base, device)
    reader = adapter_of(adapter, model, allow_pickle=allow_pickle)
    named = [(one.name, one.load(model)) for one in found]
    for name in export(model, reader, named, to_path, dtype=precision(dtype)):
        out.print(f"loras/{shown(name)}", highlight=False)
    out.print(f"files: {shown(to_path)}; how to serve them: README.md there")


@app.command()
def push(
    path: Annotated[Path, typer.Argument(help="A PEFT folder, a .safetensors diff, a merged checkpoint, or a store.")],
    repo: Annotated[str, typer.Argument(help="owner/name on the hub; made if it isn't there.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to push to.")] = None,
    base: Annotated[str | None, typer.Option(help="Base model, where the diff is more than factors.")] = None,
) -> None:
    """Put an adapter, a diff or a store on the hub, with a card that says what it is."""
    from weightdiff.publish import push as push_files

    model = load(base) if base else None
    address = push_files(path, repo, private=private, revision=revision, base=model)
    out.print(shown(address), highlight=False, soft_wrap=True)


@app.command()
def pull(
    name: Annotated[str, typer.Argument(help="owner/name@revision, or datasets/owner/name for a store.")],
) -> None:
    """Fetch an adapter, a diff or a store from the hub, and say where it lies; no code and no pickles."""
    from weightdiff.hub import DIFF_FILES, fetch

    out.print(shown(fetch(name, DIFF_FILES)), highlight=False, soft_wrap=True)


def _in_blocks(text: str) -> Callable[[str], bool]:
    """Does a module lie in one of these blocks, as in `0-9,20`?"""
    numbers: set[int] = set()
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,4})(?:-(\d{1,4}))?\s*", part)
        if found is None:
            raise ValueError(f"--layers {text!r}: expected numbers of blocks and ranges of them, as in 0-9,20.")
        numbers |= set(range(int(found[1]), int(found[2] or found[1]) + 1))
    return lambda name: any(part.isdecimal() and int(part) in numbers for part in name.split("."))


def _size(change: "WeightDiff") -> str:
    kinds = [f"{len(change.factors)} modules of rank {change.rank}"] if change.factors else []
    kinds += [f"{len(change.dense)} parameters densely"] if change.dense else []
    return f"norm {change.norm():.3f}, {' and '.join(kinds)}"
