"""The command line: each command parses, calls one function, and prints."""

import sys
import warnings
from typing import Any

from weightdiff.cli import asking, files, pipeline, sums, verifying  # noqa: F401  (each adds its commands, in this order)
from weightdiff.cli.common import app, err
from weightdiff.printable import shown


def main() -> None:
    """Entry point: a user's error is one message and exit code 1; Ctrl-C is 130."""
    warnings.showwarning = _show
    try:
        app()
    except ValueError as error:
        err.print(f"[red]error:[/] {shown(error)}")
        sys.exit(1)


def _show(message: Warning | str, category: type[Warning], filename: str, line: int, *_: Any) -> None:
    """Our own warnings as one line; those of libraries are for their developers."""
    if category.__module__.startswith("weightdiff."):
        err.print(f"[yellow]warning:[/] {shown(message)}", soft_wrap=True, highlight=False)
