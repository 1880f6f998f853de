"""What a user calls a diff: a PEFT folder, a store of ours, or one diff of a store as `STORE#ID`."""

from collections.abc import Sequence
from pathlib import Path

from weightdiff.diff import WeightDiff
from weightdiff.formats.peft import load_peft
from weightdiff.lazy import Lazy
from weightdiff.store import Store, is_store


def open_diffs(sources: Sequence[str]) -> tuple[list[str], Lazy[WeightDiff]]:
    """The diffs that the sources name, each under the name to show, read when they are needed.

    Args:
        sources: PEFT LoRA folders, stores (all of their diffs), or `STORE#ID`.

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
        else:
            loaded = load_peft(source)
            names.append(source)
            diffs += Lazy([lambda loaded=loaded: loaded])
    return names, diffs
