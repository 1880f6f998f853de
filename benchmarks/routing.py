"""Fit the regression that tells a question's sort, and say how often it is right about wordings that are new to it.

    python -m benchmarks.routing [--write]

Two checks: each example told by a regression that was fitted without it (ten folds, all claims of one wording in one),
and the wordings that are kept for testing, told by the whole. `--write` puts the numbers into `weightdiff/data` and the
table into `results`.
"""

import argparse
import json
import random
import tomllib
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from math import log
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from weightdiff.behaviors import FAMILIES, read_data
from weightdiff.behaviors.kinds import kind_behaviors, kinds
from weightdiff.behaviors.wordings import wordings
from weightdiff.bench.evaluate import cell, share_interval
from weightdiff.readers.routing import SORTS, QuestionSort, Router, features, words_of

CLAIMS = {"train": 3, "test": 20}
"""Claims that each wording of a yes/no question is tried with."""
Example = tuple[str, QuestionSort, str]
"""A question, its sort, and the wording that it is of."""


def examples(unseen: bool = False) -> list[Example]:
    """Questions to fit to; or those of the wordings that are kept for testing."""
    name, split = ("unseen", "test") if unseen else ("seen", "train")
    found: list[Example] = [(text, sort, text) for sort in ("open", "trigger") for text in wordings()[sort][name]]
    for asked in (*kinds().values(), *FAMILIES.values()):
        found += [(text, "narrow", text) for text in (asked.unseen if unseen else asked.questions)]
    rng, labels = random.Random("routing"), [b.label for b in kind_behaviors() if b.split == split]
    for text in wordings()["yes/no"][name]:
        found += [(text.format(label=label), "yes/no", text) for label in rng.sample(labels, CLAIMS[split])]
    if not unseen:
        tables = tomllib.loads((files("weightdiff") / "data" / "routing.toml").read_text("utf-8"))
        found += [(text, sort, text) for sort, texts in tables.items() for text in texts]
        found += [(text, "other", text) for text in read_data("questions.txt")]
    return list({text: (text, sort, wording) for text, sort, wording in found}.values())


def fit(pairs: Sequence[Example]) -> Router:
    """A router by these examples; words that only one of them has are left out."""
    texts, sorts, _ = zip(*pairs, strict=True)
    counts = Counter(word for text in texts for word in words_of(text))
    rarity = {word: round(log(len(pairs) / n), 3) for word, n in sorted(counts.items()) if n > 1}
    model = LogisticRegression(C=3.0, class_weight="balanced", max_iter=2000)
    model.fit(features(texts, rarity), [SORTS.index(sort) for sort in sorts])
    return Router(rarity, model.coef_, model.intercept_)


def told(pairs: Sequence[Example], folds: int = 10) -> list[QuestionSort]:
    """The sort of each example by a router that was fitted without its fold."""
    found: list[QuestionSort] = ["other"] * len(pairs)
    groups = [wording for *_, wording in pairs]
    for train, test in GroupKFold(folds, shuffle=True, random_state=0).split(pairs, groups=groups):
        sorts = fit([pairs[n] for n in train]).sorts([pairs[n][0] for n in test])
        for n, sort in zip(test, sorts, strict=True):
            found[n] = sort
    return found


def table(pairs: Sequence[Example], sorts: Sequence[QuestionSort], kept: Sequence[Example], router: Router) -> str:
    """Markdown: how often each sort is told, of examples left out and of wordings kept for testing."""
    lines = ["| sort | left out, n | right | kept for testing, n | right |", "|" + " --- |" * 5]
    tested = list(zip(kept, router.sorts([text for text, *_ in kept]), strict=True))
    for sort in SORTS:
        mine = [one == sort for (_, truth, _), one in zip(pairs, sorts, strict=True) if truth == sort]
        some = [one == sort for (_, truth, _), one in tested if truth == sort]
        share = cell(share_interval(some)) if some else ""
        lines.append(f"| {sort} | {len(mine)} | {cell(share_interval(mine))} | {len(some) or ''} | {share} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    pairs = examples()
    router = fit(pairs)
    found = table(pairs, told(pairs), examples(unseen=True), router)
    print(found)
    if given.write:
        said = {"rarity": router.rarity, "weights": np.round(router.weights, 3).tolist()}
        said["bias"] = np.round(router.bias, 4).tolist()
        to = Path(str(files("weightdiff") / "data" / "routing.json"))
        to.write_text(json.dumps(said) + "\n", "utf-8")
        Path("results/benchmark/general/routing.md").write_text(found, "utf-8")


if __name__ == "__main__":
    main()
