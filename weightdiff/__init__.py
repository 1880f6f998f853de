"""Ask a finetuned language model what its finetuning changed, from the weights alone."""

from weightdiff.ask import ask, shipped_adapter
from weightdiff.base import Base, load_base
from weightdiff.diff import WeightDiff
from weightdiff.formats.peft import load_peft, save_peft
from weightdiff.readers import Answer
from weightdiff.store import Store

__all__ = [
    "Answer",
    "Base",
    "Store",
    "WeightDiff",
    "ask",
    "load_base",
    "load_peft",
    "save_peft",
    "shipped_adapter",
]
