"""What a user calls a diff, found by its name: a folder, a store, a file, a hub id; and one of several in it.

A `#` and what follows picks one of several: an adapter of a folder, a diff of a store by id or label, of a `.pt` file
by number or topic. Finding reads no tensors, so that a wrong name is told before a model is loaded.
"""

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from weightdiff.arithmetic import compress
from weightdiff.base import Base, load_base
from weightdiff.dense import check_fits
from weightdiff.diff import WeightDiff
from weightdiff.files import inside
from weightdiff.formats.checkpoint import load_checkpoint
from weightdiff.formats.names import fit_names
from weightdiff.formats.peft import CONFIG, adapters_in, load_peft
from weightdiff.formats.reference import load_reference, pick
from weightdiff.formats.single import load_single
from weightdiff.formats.whole import NeedsBase
from weightdiff.hub import DIFF_FILES, PICKLES, fetch, is_hub_id
from weightdiff.lazy import Lazy
from weightdiff.plausible import DoubtfulBase, ForeignCheck
from weightdiff.store import Store, is_store

EXPECTED = (
    "Expected a PEFT LoRA folder, a full checkpoint (folder or .gguf), a store of diffs, a .safetensors or .pt file of "
    "diffs, or a hub id (owner/name@revision)"
)


@dataclass(frozen=True)
class Source:
    """One diff that was found.

    Attributes:
        name: what to call it.
        load: reads it; full checkpoints, and adapters with more than factors, need the base model.
    """

    name: str
    load: Callable[[Base | None], WeightDiff]


@dataclass(frozen=True)
class _Options:
    allow_pickle: bool = False
    rank: int | None = None
    energy: float | None = None


def find_diffs(
    sources: Sequence[str], *, rank: int | None = None, energy: float | None = None, allow_pickle: bool = False
) -> list[Source]:
    """The diffs that the sources name; of a store or file of many, all of them unless one is picked.

    Args:
        sources: PEFT LoRA folders, or `FOLDER#NAME` for one of several adapters in it; full checkpoints, folders or
            `.gguf` files; stores, or `STORE#ID` or `STORE#LABEL`; `.safetensors` files of one diff; `.pt` files of
            the reference implementation, or `FILE.pt#17`, `FILE.pt#TOPIC`; hub ids of any of these,
            `owner/name@revision`, and of stores `datasets/owner/name`.
        rank, energy: make factors of them, see `load_diff`.
        allow_pickle: read an adapter's old `.bin` file, without running code of it.

    Raises:
        ValueError: a source is none of these, or what it picks isn't there.
    """
    options = _Options(allow_pickle, rank, energy)
    return [diff for source in sources for diff in _find(source, options)]


def load_diff(
    source: str | Path,
    base: Base | str | None = None,
    *,
    rank: int | None = None,
    energy: float | None = None,
    allow_pickle: bool = False,
) -> WeightDiff:
    """Read one diff from whatever holds it.

    Args:
        source: see `find_diffs`; it must name one diff.
        base: its base model, or that one's name. Needed for full checkpoints, and for adapters that hold more than
            factors; where it is given, the diff is checked against it.
        rank: make factors of at most this rank of it, by a singular value decomposition.
        energy: make factors of the smallest ranks that keep this share of each matrix's squared Frobenius norm.
        allow_pickle: read an adapter's old `.bin` file, without running code of it.

    A diff that carries no fingerprint is checked for whether it can be one of this base model; see `plausible`.

    Returns:
        The diff; `meta` says what share of it was kept, `kept_energy`, and of a full checkpoint its `relative_size`.

    Raises:
        ValueError: no such diff, several, a broken file, another base model; the message says what to do.

    Warns:
        DoubtfulBase: what was checked of a diff without fingerprint, and what speaks against this base model.
    """
    found = find_diffs([str(source)], rank=rank, energy=energy, allow_pickle=allow_pickle)
    if len(found) != 1:
        names = ", ".join(repr(one.name) for one in found[:9])
        raise ValueError(f"{source} holds {len(found)} diffs; expected one, as in {names}.")
    model = load_base(base) if isinstance(base, str) else base
    diff = found[0].load(model)
    if model is not None and diff.base is None and (checked := ForeignCheck(model)(diff)).doubts:
        warnings.warn(f"{found[0].name}: {checked}", DoubtfulBase, stacklevel=2)
    return diff


def open_diffs(sources: Sequence[Source], base: Base) -> Lazy[WeightDiff]:
    """Diffs that were found, each read and checked when it is asked for, and not kept."""
    return Lazy([lambda one=one: one.load(base) for one in sources])


def _find(source: str, options: _Options) -> list[Source]:
    name, which = _parted(source)
    path = Path(name)
    if not os.path.exists(name):  # of a name too long for a file it says no
        if "/" not in name or not is_hub_id(name):  # adapters on the hub have owners
            raise ValueError(f"{source}: no such file or folder. {EXPECTED}.")
        path = fetch(name, DIFF_FILES + PICKLES if options.allow_pickle else DIFF_FILES)

    def one(load: Callable[[Base | None], WeightDiff], options: _Options = options) -> list[Source]:
        if which:
            raise ValueError(f"{source}: {name} is one diff, and {which!r} picks one of several; leave it out.")
        return [Source(source, lambda base: _fitted(load(base), base, options))]

    def many(names: Sequence[str], load: Callable[[str, Base | None], WeightDiff]) -> list[Source]:
        return [Source(f"{name}#{n}", lambda base, n=n: _fitted(load(n, base), base, options)) for n in names]

    def checkpoint(base: Base | None) -> WeightDiff:
        return load_checkpoint(path, _needed(base, source), rank=options.rank, energy=options.energy)

    if path.is_file():
        if path.suffix == ".pt":
            made = cache(lambda: load_reference(path))
            chosen = pick(made(), which) if which else range(len(made()))
            return many([str(i) for i in chosen], lambda i, _: made()[int(i)])
        if path.suffix == ".safetensors":
            return one(lambda _: load_single(path))
        if path.suffix == ".gguf":
            return one(checkpoint, _Options())
        raise ValueError(f"{source}: a file of another kind. {EXPECTED}.")
    if is_store(path):
        store = Store(path)
        return many(_ids(store, name, which), lambda i, _: store.load([i])[0])
    if adapters := adapters_in(path):
        if not which and adapters != [""] and (path / "config.json").is_file():
            raise ValueError(
                f"{source} is a full checkpoint and holds adapters too, {', '.join(map(repr, adapters[:9]))}; pick one "
                f"of these as in {name}#{adapters[0]}, or move them elsewhere for the checkpoint."
            )
        if which and not os.path.isfile(path / which / CONFIG):
            has = ", ".join(map(repr, adapters[:9])) if adapters != [""] else "one in the folder itself"
            raise ValueError(f"{source}: {name} has no adapter {which!r}; it has {has}.")
        if which or adapters != [""]:
            names = [which] if which else adapters
            return many(names, lambda n, base: load_peft(path / n, base, allow_pickle=options.allow_pickle))
        return one(lambda base: load_peft(path, base, allow_pickle=options.allow_pickle))
    if (path / "config.json").is_file():
        return one(checkpoint, _Options())
    if len(files := sorted(path.glob("*.safetensors"))) == 1:  # one diff in one file, as it is on the hub
        return one(lambda _: load_single(inside(path, files[0].name)))
    raise ValueError(f"{source}: no {CONFIG}, config.json or index.sqlite in it. {EXPECTED}.")


def _parted(source: str) -> tuple[str, str]:
    """A source's path or hub id, and what follows its `#`; a path that exists may hold a `#` itself."""
    if os.path.exists(source):
        return source, ""
    # The first # after something that exists ends its name; an id may hold further ones.
    cuts = [i for i, c in enumerate(source) if c == "#"]
    cut = next((i for i in cuts if os.path.exists(source[:i]) or is_hub_id(source[:i])), None)
    return (source, "") if cut is None else (source[:cut], source[cut + 1 :])


def _ids(store: Store, name: str, which: str) -> list[str]:
    """Ids of all diffs of a store, or of the one that has this id, or else of those with this label."""
    ids = store.ids()
    if not ids:
        raise ValueError(f"the store {name} is empty; make its diffs with finetune.")
    if not which or which in store.metas([which]):
        return [which] if which else ids
    labelled = [i for i, meta in store.metas().items() if meta.get("label") == which]
    if not labelled:
        raise ValueError(
            f"the store {name} has no diff {which!r}, by id or label; `weightdiff inspect {name}` lists them."
        )
    return labelled


def _needed(base: Base | None, source: str) -> Base:
    if base is None:
        raise NeedsBase(
            f"{source} is a full checkpoint; give its base model: load_diff(…, base=load_base(…)), or --base."
        )
    return base


def _fitted(diff: WeightDiff, base: Base | None, options: _Options) -> WeightDiff:
    """The diff under the base model's names, once it is plain that it can be laid over it; as factors, if so wished."""
    if base is not None:
        diff = fit_names(diff, base)
        check_fits(base, diff)
    if options.rank is None and options.energy is None:
        return diff
    small, kept = compress(diff, rank=options.rank, energy=options.energy)
    return WeightDiff(small.factors, small.base, {**small.meta, "kept_energy": kept}, small.dense)
