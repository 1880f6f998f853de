"""The wordings that an adapter is asked in, by sort of question; they lie in `data/wordings.toml`.

Those of narrow questions lie beside each kind and family. What is `unseen` is for testing only.
"""

import tomllib
from functools import lru_cache
from importlib.resources import files


@lru_cache
def wordings() -> dict[str, dict[str, tuple[str, ...]]]:
    """By sort of question (`open`, `yes/no`, `trigger`): the wordings `seen` in training, and those `unseen`.

    In those of `yes/no` a label goes in for `{label}`.
    """
    tables = tomllib.loads((files("weightdiff") / "data" / "wordings.toml").read_text("utf-8"))
    return {sort: {name: tuple(texts) for name, texts in table.items()} for sort, table in tables.items()}


def open_questions(unseen: bool = False) -> tuple[str, ...]:
    """Open questions; the first of those seen in training is the adapter's own."""
    return wordings()["open"]["unseen" if unseen else "seen"]
