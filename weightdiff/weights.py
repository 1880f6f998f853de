"""A model's weights by name, read one tensor at a time as float32: from a folder, a GGUF file, or a model in memory.

Names in files may differ from the model's own by what they begin with; `match` finds out which is which.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from weightdiff.base import Base
from weightdiff.files import MAX_TENSORS, TensorFile, inside, read_json
from weightdiff.pretrained import gguf_model

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


@dataclass(frozen=True)
class Weights:
    """The weights of a model.

    Attributes:
        shapes: of each tensor, by name, in the order in which they are best read.
        dtypes: as safetensors names them (`F32`, `BF16`, …).
        files: the name of the file that each lies in; empty for a model in memory.
        read: one tensor by its name, as float32 on the CPU; a ValueError if it holds NaN or infinite values.
    """

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    files: Mapping[str, str]
    read: Callable[[str], Float[Tensor, "..."]]

    def renamed(self, names: Mapping[str, str]) -> "Weights":
        """The same weights under other names: new name to old."""
        return Weights(
            {new: self.shapes[old] for new, old in names.items()},
            {new: self.dtypes[old] for new, old in names.items()},
            {new: self.files[old] for new, old in names.items() if old in self.files},
            lambda new: self.read(names[new]),
        )


def weights_in(path: Path) -> Weights:
    """The weights in a folder (`model.safetensors`, or shards and their index), or in a GGUF file.

    Only headers are read at first, and of the shards one at a time is open. A GGUF file is dequantized in memory.

    Raises:
        ValueError: no weights, or as pickles or quantized, a broken file, a shard that lacks what the index says.
    """
    if path.suffix == ".gguf" and path.is_file():
        try:
            model = gguf_model(path, torch.float32)
        except Exception as error:  # whatever transformers and gguf make of a broken one
            raise ValueError(f"{path} can't be read as a GGUF file: {error}.") from error
        return _in_memory(model, str(path))
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder. Expected one with {SINGLE}, or shards and {INDEX}; or a .gguf file.")
    config = path / "config.json"
    if config.is_file() and (quantized := read_json(inside(path, config.name)).get("quantization_config")):
        method = quantized.get("quant_method") if isinstance(quantized, dict) else None
        raise ValueError(f"{path} is quantized ({method or 'no method named'}); give the unquantized checkpoint.")
    shards: dict[str, TensorFile] = {}
    if (path / INDEX).is_file() and (path / SINGLE).is_file():
        raise ValueError(
            f"{path} has both {INDEX} and {SINGLE}: which of them a program loads can't be told. Remove one."
        )
    if (path / INDEX).is_file():
        placed = read_json(inside(path, INDEX)).get("weight_map")
        if not isinstance(placed, dict) or not all(isinstance(file, str) for file in placed.values()):
            raise ValueError(f"{path / INDEX} has no weight_map of tensor names to files.")
        for file in sorted(set(placed.values())):
            shards[file] = TensorFile(inside(path, file))
            if sum(len(shard.shapes) for shard in shards.values()) > MAX_TENSORS:
                raise ValueError(f"{path}: its shards hold more than {MAX_TENSORS} tensors; so many aren't read.")
        if lost := [name for name, file in placed.items() if name not in shards[file].shapes]:
            raise ValueError(f"{path}: the index places {lost[0]} in {placed[lost[0]]}, which hasn't got it.")
    elif (path / SINGLE).is_file():
        shards[SINGLE] = TensorFile(inside(path, SINGLE))
        placed = dict.fromkeys(shards[SINGLE].shapes, SINGLE)
    else:
        pickles = any(path.glob("*.bin")) or any(path.glob("*.pt")) or any(path.glob("*.pth"))
        what = "only pickles, which are never read; save it anew as safetensors" if pickles else "no weights in it"
        raise ValueError(f"{path}: {what}. Expected {SINGLE}, or shards and {INDEX}.")
    files = {name: file for file in shards for name in shards[file].shapes if placed.get(name, file) == file}
    open_now: list[TensorFile] = []

    def read(name: str) -> Float[Tensor, "..."]:
        file = shards[files[name]].path
        if not open_now or open_now[0].path != file:
            open_now[:] = [TensorFile(file)]  # what was read of another shard leaves memory with it
        return open_now[0].read(name)

    return Weights(
        {name: shards[file].shapes[name] for name, file in files.items()},
        {name: shards[file].dtypes[name] for name, file in files.items()},
        files,
        read,
    )


def weights_of(base: Base) -> Weights:
    """The base model's own weights by the model's names for them, each tied one under both of its names.

    From its files where it has any that hold what the model has: they may be more precise than the model in memory.
    """
    if base.source is not None:
        try:
            stored = weights_in(base.source)
            return stored.renamed(match(stored.shapes, base, str(base.source)))
        except ValueError:  # quantized, or laid out otherwise than the model
            pass
    return _in_memory(base.model, base.name)


def match(stored: Mapping[str, tuple[int, ...]], base: Base, where: str) -> dict[str, str]:
    """The base model's name of each of its weights to the stored one, which may begin otherwise.

    A tied weight that is stored once is found under that one name for both.

    Args:
        stored: shapes of what is stored, by name.
        base: the base model.
        where: what holds it, for errors.

    Raises:
        ValueError: a weight is missing, one is too many, or has another shape.
    """
    wanted = {n: tuple(t.shape) for n, t in base.model.state_dict().items() if t.is_floating_point()}
    found = {name: name for name in wanted if name in stored}
    ends = defaultdict(list)
    for name in wanted.keys() - found.keys():
        parts = name.split(".")
        for cut in range(len(parts) - 1):
            ends[".".join(parts[cut:])].append(name)
    extra = []
    for name in [n for n in stored if n not in wanted]:
        parts = name.split(".")
        for cut in range(len(parts) - 1):
            near = [n for n in ends[".".join(parts[cut:])] if n not in found]
            same = [n for n in near if wanted[n] == stored[name]] or near
            if len(same) == 1:
                found[same[0]] = name
                break
        else:
            extra.append(name)
    for name, first in tied(base).items():
        one = found.get(first) or found.get(name)
        found |= {n: one for n in (first, name) if one is not None and n not in found}
    ignored = ["rotary_emb", *(getattr(base.model, "_keys_to_ignore_on_load_unexpected", None) or [])]
    extra = [n for n in extra if not any(re.search(pattern, n) for pattern in ignored)]
    missing = [n for n in wanted if n not in found]
    if missing or extra:
        lacks = f"lacks {_some(missing, wanted)}" if missing else ""
        brings = f"has {_some(extra, stored)}, which the base model hasn't" if extra else ""
        raise ValueError(f"{where} {' and '.join(filter(None, (lacks, brings)))}. Is it of {base.name!r}?")
    rows = base.model.get_input_embeddings().weight.shape[0]
    for name, one in found.items():
        if stored[one] != wanted[name]:
            why = " A checkpoint of another vocabulary can't be compared." if wanted[name][:1] == (rows,) else ""
            raise ValueError(
                f"{where} has {one} {list(stored[one])}, and the base model {base.name!r} {list(wanted[name])}.{why}"
            )
    return {name: found[name] for name in wanted}


def tied(base: Base) -> dict[str, str]:
    """Each further name of a tied parameter to its first: `lm_head.weight` to `model.embed_tokens.weight`."""
    first: dict[int, str] = {}
    again = {}
    for name, parameter in base.model.named_parameters(remove_duplicate=False):
        if first.setdefault(id(parameter), name) != name:
            again[name] = first[id(parameter)]
    return again


_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}


def _in_memory(model: Any, where: str) -> Weights:
    tensors = {name: t for name, t in model.state_dict().items() if t.is_floating_point()}

    def read(name: str) -> Float[Tensor, "..."]:
        tensor = tensors[name].detach().to("cpu", torch.float32)
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{where}: {name!r} holds NaN or infinite values.")
        return tensor

    return Weights(
        {name: tuple(t.shape) for name, t in tensors.items()},
        {name: _NAMES[t.dtype] for name, t in tensors.items()},
        {},
        read,
    )


def _some(names: list[str], shapes: Mapping[str, tuple[int, ...]]) -> str:
    shown = ", ".join(f"{name} {list(shapes[name])}" for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
