"""Ask a finetuned language model what its finetuning changed, from the weights alone."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from weightdiff.ask import ask, shipped_adapter

if TYPE_CHECKING:
    from weightdiff.base import Base, load_base
    from weightdiff.diff import WeightDiff
    from weightdiff.formats.peft import load_peft, save_peft
    from weightdiff.readers import Answer
    from weightdiff.source import load_diff
    from weightdiff.store import Store

__all__ = [
    "Answer",
    "Base",
    "Store",
    "WeightDiff",
    "ask",
    "load_base",
    "load_diff",
    "load_peft",
    "save_peft",
    "shipped_adapter",
]

_HOMES = {
    "Answer": "readers",
    "Base": "base",
    "Store": "store",
    "WeightDiff": "diff",
    "load_base": "base",
    "load_diff": "source",
    "load_peft": "formats.peft",
    "save_peft": "formats.peft",
}


def __getattr__(name: str) -> Any:
    """A public name from its module, imported when first used: with torch and transformers that takes seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
