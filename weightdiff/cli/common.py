"""What all commands share: the app, its two consoles, common options, and how a base model is loaded."""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.status import Status

if TYPE_CHECKING:
    from weightdiff.diff import WeightDiff
    from weightdiff.source import Source

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Ask a finetuned model what its finetuning changed.")
# What goes to a file or a pipe isn't wrapped: it is read line by line.
out = Console(soft_wrap=not sys.stdout.isatty(), emoji=False)
err = Console(stderr=True, soft_wrap=not sys.stderr.isatty(), emoji=False)

BaseOption = Annotated[str, typer.Option(help="Base model: smollm2 (embedded), a folder, a .gguf file or a hub id.")]
DeviceOption = Annotated[str, typer.Option(help="auto (a GPU if there is one), cpu, cuda, cuda:1, …")]
AdapterOption = Annotated[
    str | None,
    typer.Option(help="DIT adapter: topics (unless given) or general, which are shipped; a folder; or a hub id."),
]
PickleOption = Annotated[
    bool, typer.Option("--allow-pickle", help="Read an adapter's old .bin file; no code of it is run.")
]
DIFF = "A PEFT LoRA folder, a full checkpoint, a store, a .safetensors or .pt file, a hub id; #NAME picks one of many."


def quiet() -> None:
    """No progress bars of transformers' own: a few seconds don't need one."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def load(name: str = "smollm2", device: str = "auto") -> Any:
    """The base model."""
    from weightdiff.base import load_base

    quiet()
    return load_base(name, device=device)


def working(text: str) -> Status:
    """What is being done, with a spinner on a terminal and as a line elsewhere, so that a log tells that it goes on."""
    if not err.is_terminal:
        err.print(f"{text} …", highlight=False)
    return err.status(text)


def adapter_of(name: str | None, model: Any, *, allow_pickle: bool = False) -> "WeightDiff":
    """A DIT adapter, by the name of a shipped one or from where it lies; without a name the one for that base model."""
    from weightdiff.ask import SHIPPED, shipped_adapter, shipped_for
    from weightdiff.source import load_diff

    name = shipped_for(model) if name is None else name
    if name in SHIPPED:
        return shipped_adapter(name)
    if not name or (re.fullmatch(r"[\w-]+", name) and not Path(name).exists()):
        raise ValueError(
            f"--adapter {name!r}: no shipped adapter has that name, and there is no such folder. Expected "
            f"{' or '.join(SHIPPED)}, the folder of a DIT adapter, or owner/name on the hub."
        )
    return load_diff(name, model, allow_pickle=allow_pickle)


def read(source: "Source", base: str) -> "WeightDiff":
    """A diff that was found; the base model is loaded only where the diff needs it."""
    from weightdiff.formats.whole import NeedsBase

    try:
        return source.load(None)
    except NeedsBase:
        return source.load(load(base))


def new_place(path: Path, force: bool, *, never: bool = False) -> None:
    """Raise a ValueError where something would be overwritten; `never` is for what isn't replaced by force either."""
    if (never or not force) and path.exists() and (path.is_file() or any(path.iterdir())):
        advice = "" if never else ", or --force to replace it"
        raise ValueError(f"{path} is there already; give another name{advice}.")


ForceOption = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
