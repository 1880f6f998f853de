"""What a user calls a diff: a PEFT folder, a store of ours or one diff of it (`STORE#ID`), a reference `.pt` file."""

from collections.abc import Sequence
from pathlib import Path

from weightdiff.diff import WeightDiff
from weightdiff.formats.peft import load_peft
from weightdiff.formats.reference import load_reference, pick
from weightdiff.lazy import Lazy
from weightdiff.store import Store, is_store


def open_diffs(sources: Sequence[str]) -> tuple[list[str], Lazy[WeightDiff]]:
    """The diffs that the sources name, each under the name to show, read when they are needed.

    Args:
        sources: PEFT LoRA folders; stores (all of their diffs), or `STORE#ID`; `.pt` files of the reference
            implementation (all of theirs), or `FILE.pt#17`, `FILE.pt#TOPIC`.

    Raises:
        ValueError: a source is none of these, or is broken; before any diff of a store is read.
    """
    names: list[str] = []
    diffs: Lazy[WeightDiff] = Lazy([])
    for source in sources:
        # The first # after a store's path ends it; an id may hold further ones.
        cuts = [i for i, c in enumerate(source) if c == "#" and is_store(source[:i])]
        folder, identity = (source[: cuts[0]], source[cuts[0] + 1 :]) if cuts else (source, "")
        if is_store(folder):
            store = Store(Path(folder))
            ids = [identity] if identity else store.ids()
            if not ids:
                raise ValueError(f"the store {folder} is empty; make its diffs with finetune.")
            names += [f"{folder}#{i}" for i in ids]
            diffs += store.diffs(ids)
        elif found := _of_reference(source):
            file, which = found
            made = load_reference(file)
            chosen = pick(made, which) if which else range(len(made))
            names += [f"{file}#{i}" for i in chosen]
            diffs += Lazy([lambda i=i, made=made: made[i] for i in chosen])
        else:
            loaded = load_peft(source)
            names.append(source)
            diffs += Lazy([lambda loaded=loaded: loaded])
    return names, diffs


def _of_reference(source: str) -> tuple[str, str] | None:
    """The `.pt` file that a source names, and which of its diffs, where it is one."""
    file, mark, which = source.partition(".pt#")
    file += ".pt" if mark else ""
    return (file, which) if file.endswith(".pt") and Path(file).is_file() else None
