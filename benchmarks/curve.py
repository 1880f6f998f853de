"""Grade against the number of training diffs: python -m benchmarks.curve RECIPE OUT N [N …] [--seed S].

For each N an adapter is trained on N of the run's training diffs, drawn at random (the larger sets hold the smaller
ones), with the recipe's settings, and asked about the test diffs of the first way of finetuning. One JSON line each;
the run's own adapter, on all of its diffs, is the last point.
"""

import argparse
import random
from pathlib import Path

from weightdiff.base import load_base
from weightdiff.bench.evaluate import evaluate_readers
from weightdiff.dit import train_adapter
from weightdiff.formats.peft import load_peft
from weightdiff.jsonl import append_jsonl, read_jsonl
from weightdiff.judge import EmbeddedJudge
from weightdiff.readers import Introspection
from weightdiff.recipe import load_recipe
from weightdiff.stages import data_key, diffs_of, triples
from weightdiff.store import Store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("out", type=Path)
    parser.add_argument("sizes", type=int, nargs="+")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    recipe = load_recipe(options.recipe)
    base = load_base(recipe.base)
    store = Store(recipe.folder / "diffs", base.fingerprint)
    test = store.diffs(diffs_of(store, recipe, "test", recipe.finetune[0]))
    test = [d for d in test if d.meta["family"] != "benign"]
    ids = diffs_of(store, recipe, "train")
    random.Random(options.seed).shuffle(ids)
    done = {(r["train_diffs"], r["seed"]) for r in read_jsonl(options.out)} if options.out.exists() else set()
    for size in sorted({n for n in (*options.sizes, len(ids)) if n <= len(ids) and (n, options.seed) not in done}):
        if size == len(ids):
            adapter = load_peft(recipe.folder / "adapter")
            if adapter.meta["train_diffs"] != size:
                raise ValueError(f"the run's adapter has {adapter.meta['train_diffs']} diffs, the store {size}; train.")
        else:
            train = triples(store, recipe, "train", ids[:size])
            folder = recipe.folder / f"curve-{options.seed}-{size}"
            validation = triples(store, recipe, "validation")
            adapter = train_adapter(
                base, train, validation, folder, recipe.train, data=data_key(store, recipe, ids[:size])
            )
        answers = recipe.folder / f"answers-curve-{options.seed}-{size}.jsonl"
        table = evaluate_readers(base, test, [Introspection(adapter)], recipe.question, EmbeddedJudge(), answers)
        row = table["readers"]["DIT"] | {"validation_loss": adapter.meta["validation_loss"], "seed": options.seed}
        append_jsonl(options.out, {"train_diffs": size} | row)
        print(size, row, flush=True)


if __name__ == "__main__":
    main()
