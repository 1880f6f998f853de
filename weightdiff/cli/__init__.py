"""The command line: each command parses, calls one function, and prints."""

import sys

from weightdiff.cli import asking, files, pipeline, sums  # noqa: F401  (each adds its commands, in this order)
from weightdiff.cli.common import app, err
from weightdiff.printable import shown


def main() -> None:
    """Entry point: a user's error is one message and exit code 1; Ctrl-C is 130."""
    try:
        app()
    except ValueError as error:
        err.print(f"[red]error:[/] {shown(error)}")
        sys.exit(1)
