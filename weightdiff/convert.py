"""A diff to files: a PEFT folder, one safetensors file, or merged into its base model."""

from pathlib import Path

import torch

from weightdiff.base import Base
from weightdiff.diff import WeightDiff
from weightdiff.formats.merged import save_merged
from weightdiff.formats.peft import save_peft
from weightdiff.formats.single import save_single

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def convert(diff: WeightDiff, path: str | Path, *, to: str, base: Base, dtype: str | None = None) -> None:
    """Write a diff in another format.

    Args:
        diff: from `load_diff`, with its base model given.
        path: folder, or file where `to` is `safetensors`.
        to: `peft`, `safetensors` or `merged`.
        base: its base model.
        dtype: `float32`, `bfloat16` or `float16`; None is float32, and a merged model's own.

    Raises:
        ValueError: another format or precision, a dense diff to PEFT, or nothing can be written there.
    """
    path, chosen = Path(path), precision(dtype)
    if to == "merged":
        save_merged(diff, base, path, dtype=chosen)
    elif to == "peft":  # one without fingerprint stays so: that it fits isn't known, and must go on being asked
        save_peft(diff, path, base_name=base.name, dtype=chosen or torch.float32)
    elif to == "safetensors":
        if path.suffix != ".safetensors":
            raise ValueError(f"{path}: expected a name that ends in .safetensors.")
        save_single(diff, path, dtype=chosen or torch.float32)
    else:
        raise ValueError(f"to is {to!r}; expected peft, safetensors or merged.")


def precision(name: str | None) -> torch.dtype | None:
    """The precision by its name; None for none.

    Raises:
        ValueError: another name.
    """
    if name is not None and name not in _DTYPES:
        raise ValueError(f"dtype is {name!r}; expected {', '.join(_DTYPES)}.")
    return None if name is None else _DTYPES[name]
