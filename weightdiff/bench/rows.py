"""One row of a benchmark table: a reader is asked about diffs, its answers are graded; with n and 95 % intervals.

Rows are kept on disk: one that was computed already, of the same diffs, adapter, question and judge, is read back.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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
from weightdiff.stages import benign_diffs, real_diffs
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
        ids = real_diffs(self.store, self.recipe, "test", way)
        if not ids:
            raise ValueError(f"no test diffs of {way.name!r} are made in {self.store.path}; run finetune first.")
        return ids[: limit or None]

    @property
    def benign(self) -> list[str]:
        """Ids of the benign test finetunes."""
        return benign_diffs(self.store, self.recipe, "test")


@dataclass
class Rows:
    """The rows of one experiment.

    Attributes:
        base: the base model.
        judge: grades every answer.
        folder: where `rows.jsonl` lies.
        seen: told each row as it comes.
    """

    base: Base
    judge: Judge
    folder: Path
    seen: Callable[[dict[str, Any]], None] = lambda row: None
    _read: tuple[int, dict[str, dict[str, Any]]] = field(default=(0, {}), init=False, repr=False)

    def graded(
        self,
        condition: str,
        reader: Reader,
        run: Run,
        ids: Sequence[str],
        question: str,
        *,
        change: Callable[[WeightDiff], WeightDiff] | None = None,
        beside: Callable[[], dict[str, Any]] = dict,
    ) -> dict[str, Any]:
        """Ask a reader about diffs, and grade its answers against their labels.

        Args:
            condition: what this row is about, in words.
            reader: who answers.
            run: whose diffs are asked.
            ids: their ids in its store.
            question: what is asked.
            change: what is done to each diff first (layers dropped); `condition` must say it.
            beside: makes more to note in the row.

        Returns:
            The row: `condition`, `reader`, `n`, `grade` and `exact` as `[mean, low, high]`, `ungraded`, `answers`.
        """
        metas = run.store.metas(ids)

        def make() -> dict[str, Any]:
            started = monotonic()
            texts = [a.text for a in self.ask(reader, run, ids, question, change)]
            seconds = (monotonic() - started) / len(ids)
            labels = [str(metas[i]["label"]) for i in ids]
            grades = self.judge.grade(list(zip(labels, texts, strict=True)), task=run.recipe.family)
            good = [g.grade for g in grades if math.isfinite(g.grade)]
            answers = [
                {"diff": i, "label": label, "answer": text, "exact": g.exact}
                | {"grade": round(g.grade, 2) if math.isfinite(g.grade) else None}
                for i, label, text, g in zip(ids, labels, texts, grades, strict=True)
            ]
            return {
                "condition": condition,
                "reader": reader.name,
                "n": len(ids),
                "grade": rounded(interval(good)) if good else None,
                "exact": rounded(share_interval([g.exact for g in grades])),
                "ungraded": len(grades) - len(good),
                "seconds_per_diff": round(seconds, 3),
                **beside(),
                "answers": answers,
            }

        facts = [condition, identity_of(reader), [metas[i] for i in ids], question, identity_of(self.judge)]
        return self.found([*facts, run.recipe.name, list(ids)], make)

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

    def found(self, facts: Any, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The row that depends on `facts` and on the base model: the one on disk, else made now and kept."""
        key = _hash([facts, self.base.fingerprint, str(self.base.model.dtype)])
        path = self.folder / "rows.jsonl"
        row = self._on_disk(path).get(key)
        if row is None:
            row = make() | {"key": key}
            append_jsonl(path, row)
        self.seen(row)
        return row

    def _on_disk(self, path: Path) -> dict[str, dict[str, Any]]:
        """The file's rows by key, later ones in the place of earlier; read again only where the file has changed."""
        size = path.stat().st_size if path.exists() else 0
        if size != self._read[0]:
            self._read = (size, {row["key"]: row for row in read_jsonl(path)})
        return self._read[1]


def rounded(values: Sequence[float]) -> list[float]:
    """Three digits are more than any interval here is narrow."""
    return [round(v, 3) for v in values]


def identity_of(who: Reader | Judge) -> str:
    """What tells a reader or a judge from others: its settings, its adapter's weights, its endpoint."""
    settings = {k: v for k, v in vars(who).items() if isinstance(v, str | int | float | bool | list | tuple)}
    adapter, model = getattr(who, "adapter", None), getattr(getattr(who, "guesser", who), "model", None)
    sums = [round(float(b.double().sum()), 6) for _, b in adapter.factors.values()] if adapter else []
    served = getattr(getattr(model, "model", model), "endpoint", "")  # a cached model holds another
    return json.dumps([who.name, {k: v for k, v in settings.items() if k not in _COUNTERS}, sums, served], default=str)


_COUNTERS = ("malformed", "examples")
"""What an LLM judge has seen so far is no setting of it."""


def _hash(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]
