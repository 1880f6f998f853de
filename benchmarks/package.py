"""Put a run's adapter and the demo's diffs into the package: python -m benchmarks.package RECIPE.

The demo's diffs are the first eight labels of the test split, in its own order: not a choice.
"""

import sys
from importlib.resources import files
from pathlib import Path

import torch

from weightdiff.behaviors import topic_behaviors
from weightdiff.formats.peft import load_peft, save_peft
from weightdiff.recipe import load_recipe
from weightdiff.store import Store


def main() -> None:
    recipe = load_recipe(sys.argv[1])
    data = Path(str(files("weightdiff") / "data"))
    adapter = load_peft(recipe.folder / "adapter")
    save_peft(adapter, data / "adapter", base_name=recipe.base, dtype=torch.bfloat16)
    labels = [b.label for b in topic_behaviors() if b.split == "test"][:8]
    for number, diff in enumerate(Store(recipe.folder / "diffs").load(labels)):
        save_peft(diff, data / "demo" / str(number), base_name=recipe.base, dtype=torch.bfloat16)


if __name__ == "__main__":
    main()
