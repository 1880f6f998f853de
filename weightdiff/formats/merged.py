"""A diff merged into its base model: a full checkpoint that any program loads without knowing of diffs.

The base model's own files are gone through shard by shard, so that memory stays near the largest of them.
"""

import copy
import json
import os
import shutil
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from weightdiff.atomic import replacing
from weightdiff.base import Base
from weightdiff.diff import WeightDiff
from weightdiff.files import inside, read_json
from weightdiff.weights import INDEX, SINGLE, Weights, match, tied, weights_in

_BESIDE = ("*.json", "*.jinja", "*.txt", "tokenizer.model")
"""What is copied from beside the base model's weights: no code, no pickles."""
_NOT_BESIDE = ("config.json", INDEX)
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def save_merged(diff: WeightDiff, base: Base, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Write the model `M + δ` as a checkpoint in Hugging Face format, added in float32.

    The folder appears whole or not at all. Its shards are named as the base model's; where the base model has none
    (made in memory, GGUF, quantized), it is written as `save_pretrained` does. Where a diff changes a tied weight in
    one of its places only, or differently, the head is written apart and the config says that it is no longer tied.

    Args:
        diff: of this base model.
        base: the base model.
        folder: one that isn't there yet, or is empty.
        dtype: precision of the weights on disk, None for that of the base model's own.

    Raises:
        ValueError: the diff doesn't fit the base model, or changes a bias that it hasn't; the folder can't be written
            or holds something.
    """
    folder = Path(folder)
    changes = _Changes(diff, base)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already; give a new folder for the merged checkpoint.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=folder.parent))
        try:
            if found := _stored(base):
                _write_shards(changes, base, *found, work, dtype)
            else:
                _write_model(changes, base, work, dtype)
            work.chmod(0o755)
            os.replace(work, folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot write {folder}: {error}. Is there space and permission?") from None


class _Changes:
    """What a diff changes in each place of the base model; a ValueError where it doesn't fit."""

    def __init__(self, diff: WeightDiff, base: Base):
        if diff.base is not None and diff.base != base.fingerprint:
            raise ValueError(
                f"the diff is of the base model {diff.base}, and {base.name!r} is {base.fingerprint}; "
                "give the one that it was made on."
            )
        shapes = {n: tuple(p.shape) for n, p in base.model.named_parameters(remove_duplicate=False)}
        for name, change in diff.dense.items():
            _check(name, tuple(change.shape), shapes, base)
        for module, (a, b) in diff.factors.items():
            _check(f"{module}.weight", (b.shape[0], a.shape[1]), shapes, base)
        self.diff, self.twins = diff, tied(base)
        self.shared = {name: first for name, first in self.twins.items() if self.alike(name, first)}

    def of(self, name: str) -> Tensor | None:
        """The change of one parameter in one place; None where there is none."""
        module = name.removesuffix(".weight")
        low = WeightDiff({module: self.diff.factors[module]}).to_dense(module) if module in self.diff.factors else None
        # A dense change of a tied weight is of all its places, unless the diff names each.
        group = [name, *(n for pair in self.twins.items() if name in pair for n in pair)]
        dense = next((self.diff.dense[n].float() for n in group if n in self.diff.dense), None)
        return low if dense is None else dense if low is None else dense + low

    def alike(self, name: str, other: str) -> bool:
        """Does the diff change both places alike, so that they can stay tied?"""
        one, two = self.of(name), self.of(other)
        return one is two is None or (one is not None and two is not None and torch.equal(one, two))


def _check(name: str, shape: tuple[int, ...], shapes: dict[str, tuple[int, ...]], base: Base) -> None:
    if name not in shapes and name.endswith(".bias") and f"{name.removesuffix('.bias')}.weight" in shapes:
        raise ValueError(
            f"the diff adds {name!r}, and the base model {base.name!r} has no bias there: such a checkpoint would need "
            "another architecture, so that it can't be merged. Save the diff itself instead."
        )
    if shapes.get(name) != shape:
        has = list(shapes[name]) if name in shapes else "none of that name"
        raise ValueError(
            f"the diff changes {name!r} of shape {list(shape)}, and the base model {base.name!r} has {has}. "
            "Was it made on another base model?"
        )


def _stored(base: Base) -> tuple[Path, Weights, dict[str, str]] | None:
    """The base model's folder, the weights in it, and the model's names to theirs; None where it has no such files."""
    if base.source is None or not base.source.is_dir():
        return None
    try:
        stored = weights_in(base.source)
        return base.source, stored, match(stored.shapes, base, str(base.source))
    except ValueError:  # quantized, or laid out otherwise than the model
        return None


def _write_shards(
    changes: _Changes, base: Base, source: Path, stored: Weights, names: dict[str, str], work: Path, dtype: Any
) -> None:
    """The base model's files again, with the changes; each shard is in memory once."""
    shards: dict[str, dict[str, str]] = defaultdict(dict)  # file to (name in it to the model's name)
    for name, old in names.items():
        if name not in changes.shared or names[changes.shared[name]] != old:
            once = old not in shards[stored.files[old]]
            shards[stored.files[old]][old if once else name] = name
    total, placed = 0, {}
    for file, content in shards.items():
        tensors = {}
        for new, name in content.items():
            weight, change = stored.read(names[name]), changes.of(name)
            weight = weight if change is None else weight + change
            tensors[new] = weight.to(dtype or _DTYPES.get(stored.dtypes[names[name]], torch.float32)).contiguous()
            total, placed[new] = total + tensors[new].nbytes, file
        with replacing(work / file) as temporary:
            save_file(tensors, temporary, {"format": "pt"})
    if set(shards) != {SINGLE}:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))}
        (work / INDEX).write_text(json.dumps(index, indent=2))
    for pattern in _BESIDE:
        for path in source.glob(pattern):
            if path.name not in _NOT_BESIDE:
                shutil.copyfile(inside(source, path.name), work / path.name)
    config = read_json(source / "config.json")
    if changes.twins.keys() - changes.shared.keys():
        config["tie_word_embeddings"] = False
    if dtype is not None:
        config["dtype"] = str(dtype).removeprefix("torch.")
        config.pop("torch_dtype", None)
    (work / "config.json").write_text(json.dumps(config, indent=2))


def _write_model(changes: _Changes, base: Base, work: Path, dtype: torch.dtype | None) -> None:
    """A copy of the model in memory, changed, as transformers writes it."""
    model = copy.deepcopy(base.model)
    for name, parameter in base.model.named_parameters(remove_duplicate=False):
        if name in changes.shared:
            continue  # it is its twin's
        change = changes.of(name)
        weight = parameter.detach() if change is None else parameter.detach().float() + change.to(parameter.device)
        owner, _, last = name.rpartition(".")
        new = nn.Parameter(weight.to(dtype or parameter.dtype), requires_grad=False)
        setattr(model.get_submodule(owner), last, new)
    for name, first in changes.shared.items():
        owner, _, last = name.rpartition(".")
        setattr(model.get_submodule(owner), last, model.get_parameter(first))
    if changes.twins.keys() - changes.shared.keys():
        model.config.tie_word_embeddings = False
    if dtype is not None:
        model.config.dtype = dtype
    model.save_pretrained(work)
    base.tokenizer.save_pretrained(work)
