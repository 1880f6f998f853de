"""One row of a benchmark table: a reader is asked about diffs, its answers are graded; with n and 95 % intervals.

Rows are kept on disk: one that was computed already, with the same diffs, adapter, question and judge, is read back.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from time import monotonic
from typing import Any

from weightdiff.base import Base
from weightdiff.bench.evaluate import interval, share_interval
from weightdiff.diff import WeightDiff
from weightdiff.formats.peft import load_peft
from weightdiff.jsonl import append_jsonl, read_jsonl
from weightdiff.judge import Judge
from weightdiff.readers import Answer, Reader
from weightdiff.recipe import Recipe, Way
from weightdiff.stages import diffs_of
from weightdiff.store import Store


@dataclass(frozen=True)
class Run:
    """A finished run that an experiment asks: its recipe, its diffs, its adapter."""

    recipe: Recipe
    store: Store

    @cached_property
    def adapter(self) -> WeightDiff:
        """The run's DIT adapter.

        Raises:
            ValueError: it isn't trained yet.
        """
        if not (self.recipe.folder / "adapter").is_dir():
            raise ValueError(
                f"{self.recipe.folder} holds no adapter yet; run train with the recipe {self.recipe.name}."
            )
        return load_peft(self.recipe.folder / "adapter")

    def way(self, name: str) -> Way:
        """The way of finetuning of that name.

        Raises:
            ValueError: the recipe has none.
        """
        for way in self.recipe.finetune:
            if way.name == name:
                return way
        names = [w.name for w in self.recipe.finetune]
        raise ValueError(f"the recipe {self.recipe.name!r} has no way of finetuning {name!r}; it has {names}.")

    def tests(self, way: Way | None = None, limit: int = 0) -> list[str]:
        """Ids of the test diffs of one way, the first unless given; benign ones are none of them.

        Raises:
            ValueError: none is made yet.
        """
        way = way or self.recipe.finetune[0]
        ids = [i for i in diffs_of(self.store, self.recipe, "test", way) if not i.startswith("benign ")]
        if not ids:
            raise ValueError(f"no test diffs of {way.name!r} are made in {self.store.path}; run finetune first.")
        return ids[: limit or None]

    @property
    def benign(self) -> list[str]:
        """Ids of the benign test finetunes."""
        return [i for i in diffs_of(self.store, self.recipe, "test") if i.startswith("benign ")]


@dataclass
class Rows:
    """The rows of one experiment.

    Attributes:
        base: the base model.
        judge: grades every answer.
        folder: where `rows.jsonl` and `answers.jsonl` lie.
        seen: told each row as it comes.
    """

    base: Base
    judge: Judge
    folder: Path
    seen: Callable[[dict[str, Any]], None] = lambda row: None

    def graded(
        self,
        condition: str,
        reader: Reader,
        run: Run,
        ids: Sequence[str],
        question: str,
        *,
        change: Callable[[WeightDiff], WeightDiff] | None = None,
        **beside: Any,
    ) -> dict[str, Any]:
        """Ask a reader about diffs, and grade its answers against their labels.

        Args:
            condition: what this row is about, in words.
            reader: who answers.
            run: whose diffs are asked.
            ids: their ids in its store.
            question: what is asked.
            change: what is done to each diff first (layers dropped).
            beside: more to note in the row.

        Returns:
            The row: `condition`, `reader`, `n`, `grade` and `exact` as `[mean, low, high]`, `ungraded`, `answers`.
        """
        task = run.recipe.family
        facts = [condition, _identity(reader), run.recipe.name, list(ids), question, self.judge.name, beside]
        kept = self._kept(facts)
        if kept:
            self.seen(kept)
            return kept
        started = monotonic()
        answers = self.ask(reader, run, ids, question, change)
        seconds = (monotonic() - started) / len(ids)
        metas = run.store.metas()
        pairs = [(str(metas[i]["label"]), a.text) for i, a in zip(ids, answers, strict=True)]
        grades = self.judge.grade(pairs, task=task)
        good = [g.grade for g in grades if math.isfinite(g.grade)]
        row = {
            "condition": condition,
            "reader": reader.name,
            "n": len(ids),
            "grade": [round(v, 3) for v in interval(good)] if good else None,
            "exact": [round(v, 3) for v in share_interval([g.exact for g in grades])],
            "ungraded": len(grades) - len(good),
            "seconds_per_diff": round(seconds, 3),
        }
        texts = [a.text for a in answers]
        for identity, (label, text), grade in zip(ids, pairs, grades, strict=True):
            line = {"condition": condition, "reader": reader.name, "diff": identity, "label": label, "answer": text}
            append_jsonl(self.folder / "answers.jsonl", line | {"grade": round(grade.grade, 2), "exact": grade.exact})
        return self.keep(facts, row | beside | {"answers": texts})

    def ask(
        self,
        reader: Reader,
        run: Run,
        ids: Sequence[str],
        question: str,
        change: Callable[[WeightDiff], WeightDiff] | None = None,
    ) -> list[Answer]:
        """A reader's answers about diffs of a run, changed first where a change is given."""
        diffs: Sequence[WeightDiff] = run.store.diffs(ids)
        return reader.read(self.base, [change(d) for d in diffs] if change else diffs, question)

    def keep(self, facts: Any, row: dict[str, Any]) -> dict[str, Any]:
        """Write a row down under what it depends on."""
        append_jsonl(self.folder / "rows.jsonl", row | {"key": _hash(facts)})
        self.seen(row)
        return row

    def found(self, facts: Any, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The row that depends on `facts`: the kept one, else made now."""
        kept = self._kept(facts)
        if kept:
            self.seen(kept)
        return kept or self.keep(facts, make())

    def _kept(self, facts: Any) -> dict[str, Any] | None:
        path, key = self.folder / "rows.jsonl", _hash(facts)
        rows = list(read_jsonl(path)) if path.exists() else []
        return next((r for r in reversed(rows) if r["key"] == key), None)


def _identity(reader: Reader) -> str:
    """What tells a reader from others: its settings, and its adapter's weights."""
    settings = {k: v for k, v in vars(reader).items() if isinstance(v, str | int | float | bool | list | tuple)}
    adapter = getattr(reader, "adapter", None)
    sums = [round(float(b.double().sum()), 6) for _, b in adapter.factors.values()] if adapter else []
    return json.dumps([reader.name, settings, sums], default=str)


def _hash(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]
