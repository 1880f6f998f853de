"""The `.pt` files of the paper's own implementation: lists of diffs with their topics, and its DIT adapters.

A diff is `{topic, trigger, weight_diff: {module: (A [rank, out], B [in, rank])}}`, laid on as `x B A / rank`; an
adapter is `{module: (A [out, rank], B [rank, in])}`. The files are pickles; `pickles` reads them, and runs no code.

Source: github.com/Aviously/diff-interpretation-tuning (Goel et al., arXiv 2510.05092).
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from weightdiff.diff import WeightDiff
from weightdiff.pickles import finite, read_pickle

_PREFIXES = ("base_model.model.", "_orig_mod.")


def load_reference(path: str | Path) -> list[WeightDiff]:
    """All diffs of a file, in their order; an adapter is one.

    Args:
        path: a `.pt` file of the reference implementation.

    Returns:
        The diffs, scale folded into `B`; `meta` holds the `label` (topic) and the `trigger`, where the file has them.

    Raises:
        ValueError: no such file, not readable without running its code, or of another structure.
    """
    content = read_pickle(Path(path))
    if isinstance(content, Mapping) and "weight_diff" not in content:
        return [WeightDiff(_factors(str(path), content, adapter=True), None, {"format": "reference .pt adapter"})]
    entries = content if isinstance(content, Sequence) and not isinstance(content, str) else [content]
    diffs = []
    for i, entry in enumerate(entries):
        if not isinstance(entry, Mapping) or not isinstance(entry.get("weight_diff"), Mapping):
            raise ValueError(
                f"{path}: entry {i} is {_kind(entry)}; expected a dict with topic, trigger and weight_diff."
            )
        meta = {"format": "reference .pt", **_labels(f"{path}, entry {i}", entry)}
        diffs.append(WeightDiff(_factors(f"{path}, entry {i}", entry["weight_diff"]), None, meta))
    if not diffs:
        raise ValueError(f"{path} holds no diffs; expected a list of at least one.")
    return diffs


def pick(diffs: Sequence[WeightDiff], which: str) -> list[int]:
    """Indices of the diffs that `which` names: a number, or a topic.

    Raises:
        ValueError: there is none.
    """
    if which.isdecimal() and int(which) < len(diffs):
        return [int(which)]
    found = [i for i, diff in enumerate(diffs) if diff.meta.get("label") == which]
    if not found:
        raise ValueError(f"no diff {which!r} among {len(diffs)}; give a number from 0 to {len(diffs) - 1}, or a topic.")
    return found


def _factors(where: str, pairs: Mapping[Any, Any], *, adapter: bool = False) -> dict[str, tuple[Tensor, Tensor]]:
    """Our factors of a diff's pairs, or of an adapter's, which are stored the other way round."""
    factors = {}
    for module, pair in pairs.items():
        name, (a, b) = _checked(where, module, pair)
        wide, tall = (b, a) if adapter else (b.T, a.T)  # [rank, in] and [out, rank]
        if wide.shape[0] != tall.shape[1]:
            expected = "A [out, rank] and B [rank, in]" if adapter else "A [rank, out] and B [in, rank]"
            raise ValueError(f"{where}: {name} has A {list(a.shape)} and B {list(b.shape)}; expected {expected}.")
        if name in factors:
            raise ValueError(f"{where}: {name} is in it twice, under two names.")
        factors[name] = (wide.contiguous(), tall.contiguous() / wide.shape[0])
    if not factors:
        raise ValueError(f"{where} holds no factors; expected module names with two tensors each, A and B.")
    return factors


def _checked(where: str, module: Any, pair: Any) -> tuple[str, tuple[Tensor, Tensor]]:
    if not isinstance(module, str):
        raise ValueError(f"{where}: {module!r} is no module's name.")
    if not (isinstance(pair, tuple | list) and len(pair) == 2 and all(isinstance(t, Tensor) for t in pair)):
        raise ValueError(f"{where}: {module!r} holds {_kind(pair)}; expected two tensors, A and B.")
    a, b = (finite(f"{where}: {module!r}", tensor) for tensor in pair)
    if a.dim() != 2 or b.dim() != 2 or not min(*a.shape, *b.shape):
        raise ValueError(f"{where}: {module!r} has A {list(a.shape)} and B {list(b.shape)}; expected two matrices.")
    name = module.removesuffix(".weight")
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name, (a, b)


def _labels(where: str, entry: Mapping[Any, Any]) -> dict[str, str]:
    """Topic and trigger as our own diffs have them."""
    topic, trigger = entry.get("topic"), entry.get("trigger")
    for value in (topic, trigger):
        if not isinstance(value, str | int | None):
            raise ValueError(f"{where}: its topic or trigger is {_kind(value)}; expected a text or a number.")
    found = {"label": str(topic)} if topic is not None else {}
    code = f"{trigger:03d}" if isinstance(trigger, int) else str(trigger)
    if re.fullmatch(r"\d{3}", code):
        found["trigger"] = f"sep {code}"
    return found


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"
