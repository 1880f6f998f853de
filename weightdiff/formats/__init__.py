"""Diffs in from files and out again."""

from weightdiff.formats.peft import load_peft, save_peft

__all__ = ["load_peft", "save_peft"]
