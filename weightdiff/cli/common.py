"""What all commands share: the app, its two consoles, common options, and how a base model is loaded."""

from typing import Annotated, Any

import typer
from rich.console import Console

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Ask a finetuned model what its finetuning changed.")
out, err = Console(), Console(stderr=True)

BaseOption = Annotated[str, typer.Option(help="Base model: smollm2 (embedded), a folder, a .gguf file or a hub id.")]
DeviceOption = Annotated[str, typer.Option(help="auto (a GPU if there is one), cpu, cuda, cuda:1, …")]
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
