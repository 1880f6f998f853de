"""One diff in one safetensors file: `NAME.A` and `NAME.B` for factors, `NAME.D` for dense changes.

The file's metadata holds under `weightdiff` the base model's fingerprint and what else is known of the diff, as JSON.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from weightdiff.atomic import replacing
from weightdiff.diff import WeightDiff
from weightdiff.files import TensorFile


def save_single(diff: WeightDiff, path: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write a diff, low-rank, dense or both, as one file, atomically.

    Args:
        diff: what to write; its `meta` must be plain JSON values.
        path: the file; its folder is made if it isn't there.
        dtype: precision on disk.

    Raises:
        ValueError: the file can't be written.
    """
    path = Path(path)
    tensors = {f"{name}.D": change for name, change in diff.dense.items()}
    for name, (a, b) in diff.factors.items():
        tensors |= {f"{name}.A": a, f"{name}.B": b}
    # Clones, as safetensors refuses tensors that share memory.
    written = {name: t.detach().to("cpu", dtype).contiguous().clone() for name, t in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            save_file(written, temporary, {"weightdiff": json.dumps({"base": diff.base, "meta": diff.meta})})
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot write {path}: {error}. Is there space and permission?") from None


def load_single(path: str | Path) -> WeightDiff:
    """Read what `save_single` wrote, as float32; its `meta` says the `format` too, where it didn't before.

    Raises:
        ValueError: no such file, a broken one, other tensors than a diff's, NaN.
    """
    path = Path(path)
    file = TensorFile(path)
    base, meta = _about(path, file.metadata)
    tensors = dict(file.read_all())
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    dense: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name, kind = key[:-2], key[-2:]
        if not name or kind not in (".A", ".B", ".D"):
            raise ValueError(f"{path}: {key!r} is no part of a diff; expected names that end in .A, .B or .D.")
        if kind == ".D":
            dense[name] = tensor
            continue
        other = f"{name}{'.B' if kind == '.A' else '.A'}"
        if other not in tensors:
            raise ValueError(f"{path}: {key!r} has no {other!r} beside it; the file is incomplete.")
        if kind == ".A":
            factors[name] = (tensor, tensors[other])
            _check_pair(path, name, *factors[name])
    return WeightDiff(factors, base, {"format": "one safetensors file", **meta}, dense)


def _check_pair(path: Path, name: str, a: Tensor, b: Tensor) -> None:
    if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1] or not a.shape[0]:
        raise ValueError(
            f"{path}: {name!r} has A {list(a.shape)} and B {list(b.shape)}; expected A [rank, in] and B [out, rank]."
        )


def _about(path: Path, metadata: dict[str, str]) -> tuple[str | None, dict[str, Any]]:
    """The fingerprint and the meta in a file's metadata; none where another program wrote the file."""
    try:
        about = json.loads(metadata.get("weightdiff", "{}"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: what its metadata says under weightdiff is not readable JSON: {error}.") from None
    base, meta = (about.get("base"), about.get("meta", {})) if isinstance(about, dict) else (0, 0)
    if not (isinstance(base, str | None) and isinstance(meta, dict)):
        raise ValueError(f"{path}: expected a base and a meta under weightdiff in its metadata; got {str(about)[:80]}.")
    return base, meta
