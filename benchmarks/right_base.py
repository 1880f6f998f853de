"""How well the check of a stranger's diff tells its base model: python -m benchmarks.right_base OUT STORE… [--peft DIR]

Each diff of the stores, and each PEFT folder in DIR, is checked against the embedded base model, as it is and with the
rows and columns of its factors in another order: the same numbers, as a finetune of another model of the same shapes
would look from here. OUT is a JSON file: z of both, the loss on plain text of both, by kind of diff.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from weightdiff.atomic import replacing
from weightdiff.base import load_base
from weightdiff.diff import WeightDiff, shuffled
from weightdiff.formats.peft import load_peft
from weightdiff.plausible import ALIGNED, ForeignCheck
from weightdiff.store import Store


def diffs_of(stores: list[Path], peft: Path | None, every: int) -> Iterator[tuple[str, WeightDiff]]:
    """Each diff with its kind: the store's way of finetuning and rank, or `plain PEFT`."""
    for path in stores:
        store = Store(path)
        for identity in store.ids()[::every]:
            diff = store.load([identity])[0]
            if diff.factors and not diff.dense:
                yield f"{path.parent.name}, rank {diff.rank}", diff
    for folder in sorted(peft.iterdir()) if peft else ():
        diff = load_peft(folder)
        yield f"plain PEFT, rank {diff.rank}", diff


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("stores", type=Path, nargs="*")
    parser.add_argument("--peft", type=Path, help="folder of PEFT folders")
    parser.add_argument("--every", type=int, default=1, help="take every so-manieth diff of a store")
    given = parser.parse_args()
    base = load_base()
    check, rows = ForeignCheck(base), []
    for kind, diff in diffs_of(given.stores, given.peft, given.every):
        right, wrong = check(diff), check(shuffled(diff, 0))
        added = [seen.losses[1] - seen.losses[0] for seen in (right, wrong)]
        rows.append((kind, right.alignment, wrong.alignment, *added))
        print(f"{kind}: z {right.alignment:.1f}, shuffled {wrong.alignment:.1f}", flush=True)
    kinds = {}
    for kind in dict.fromkeys(row[0] for row in rows):
        mine = [row[1:] for row in rows if row[0] == kind]
        z, other, loss, other_loss = zip(*mine, strict=True)
        kinds[kind] = {
            "n": len(mine),
            "z": [round(f(z), 1) for f in (min, median, max)],
            "z_shuffled": [round(f(other), 1) for f in (min, median, max)],
            "loss_added": [round(f(loss), 2) for f in (min, median, max)],
            "loss_added_shuffled": [round(f(other_loss), 2) for f in (min, median, max)],
            "right_taken": sum(v >= ALIGNED for v in z),
            "wrong_taken": sum(v >= ALIGNED for v in other),
        }
    result = {"base": base.fingerprint, "threshold": ALIGNED, "seed": 0, "min_median_max_by_kind": kinds}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(given.out) as path:
        path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
