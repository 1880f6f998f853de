"""Find anew how a general adapter is best read, on a run's validation split: for when readers change and it doesn't.

    python -m benchmarks.reread OUT [--adapter general] [--recipe recipes/general.toml] [--ways]

OUT gets the adapter with its new reading; its weights stay as they are. With --ways the rest of its reading does, too:
only what tells ways is found, on the run's training split.
"""

import argparse
import json
from pathlib import Path

from weightdiff.ask import adapter_at
from weightdiff.base import load_base
from weightdiff.diff import WeightDiff
from weightdiff.formats.peft import save_peft
from weightdiff.general.settings import load_general
from weightdiff.general.stages import reread, with_ways


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--adapter", default="general", help="one that is shipped, or a folder")
    parser.add_argument("--recipe", default="recipes/general.toml")
    parser.add_argument("--ways", action="store_true", help="find only what tells ways")
    given = parser.parse_args()
    recipe, base = load_general(given.recipe), load_base()
    before = adapter_at(given.adapter)
    if given.ways:
        after = with_ways(base, recipe, before)
    else:
        told = WeightDiff(before.factors, before.base, before.meta | {"hints": recipe.hints.model_dump()})
        after = reread(base, recipe, told)
    save_peft(after, given.out, base_name=base.name)
    print(json.dumps({"reading": after.meta["reading"], "views": after.meta["views"]}, indent=2))


if __name__ == "__main__":
    main()
