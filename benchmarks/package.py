"""Put what a run made into the repo, as it ships: python -m benchmarks.package RECIPE.

Of a general run that is the adapter, and how its training went. Of another the adapter and the demo's diffs go into
the package (the diffs are the first eight labels of the test split, in its own order: not a choice), the conversations
beside the recipe, the figures and single answers into `results/`.
"""

import lzma
import shutil
import sys
from importlib.resources import files
from pathlib import Path

import torch

from weightdiff.behaviors import topic_behaviors
from weightdiff.formats.peft import load_peft, save_peft
from weightdiff.general.settings import is_general, load_general
from weightdiff.recipe import load_recipe
from weightdiff.store import Store


def main() -> None:
    path = Path(sys.argv[1])
    data, results = Path(str(files("weightdiff") / "data")), path.parent.parent / "results"
    if is_general(path):
        general = load_general(path)
        adapter = load_peft(general.folder / "adapter")
        save_peft(adapter, data / "general", base_name=general.base, dtype=torch.bfloat16)
        name = "training.jsonl" if general.start is None else "training-more.jsonl"
        shutil.copy(general.folder / "training" / "metrics.jsonl", results / "benchmark" / "general" / name)
        return
    recipe = load_recipe(path)
    adapter = load_peft(recipe.folder / "adapter")
    save_peft(adapter, data / "adapter", base_name=recipe.base, dtype=torch.bfloat16)
    labels = [b.label for b in topic_behaviors() if b.split == "test"][:8]
    for number, diff in enumerate(Store(recipe.folder / "diffs").load(labels)):
        save_peft(diff, data / "demo" / str(number), base_name=recipe.base, dtype=torch.bfloat16)
    written = recipe.folder / "conversations.jsonl"
    if written.exists():
        target = path.parent / "conversations" / f"{recipe.name}.jsonl.xz"
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(lzma.compress(written.read_bytes(), preset=9))
    results = results / recipe.name
    results.mkdir(parents=True, exist_ok=True)
    for file in (*recipe.folder.glob("*.json"), *recipe.folder.glob("answers*.jsonl")):
        shutil.copy(file, results)
    shutil.copy(recipe.folder / "training" / "metrics.jsonl", results / "training.jsonl")


if __name__ == "__main__":
    main()
