"""WeightDiffQA as a task of inspect-ai, whose viewer then shows each question about a diff, its answer and its grade.

    inspect eval weightdiff/bench/inspect_task.py -T run=recipes/topics.toml --model mockllm/model

The model that inspect asks for is never called: a reader of ours answers about the diffs of the run's store.
"""

import os
import threading
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anyio import to_thread

from weightdiff.base import load_base
from weightdiff.behaviors import SPLITS
from weightdiff.bench.export import jobs_made, question_rows
from weightdiff.formats.peft import load_peft
from weightdiff.judge import EmbeddedJudge, Grade
from weightdiff.readers import Answer, BaseQuestion, Introspection
from weightdiff.recipe import Recipe, load_recipe
from weightdiff.store import Store

try:
    from inspect_ai import Task, task
    from inspect_ai.dataset import MemoryDataset, Sample
    from inspect_ai.model import ChatCompletionChoice, ChatMessageAssistant, ModelOutput
    from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr
    from inspect_ai.solver import Generate, Solver, TaskState, solver
except ImportError as error:
    raise ValueError(
        f"the inspect task needs the package inspect-ai ({error}); run: pip install 'weightdiff[inspect]'"
    ) from None

READERS = ("DIT", "base question")
QUESTIONS = ("own", "trained", "unseen")


class Answers:
    """A reader's answers to a run's questions, all found at once when the first is asked for; any thread may ask.

    Args:
        recipe: the run.
        reader: one of `READERS`.
        adapter: folder of the DIT adapter; unread for the base question.
        asked: (diff, question) each.
    """

    def __init__(self, recipe: Recipe, reader: str, adapter: Path, asked: Sequence[tuple[str, str]]):
        self.recipe, self.reader, self.adapter, self.asked = recipe, reader, adapter, asked
        self.name = f"{reader} on {recipe.name}"  # what inspect's log calls it
        self._found: dict[tuple[str, str], Answer] = {}
        self._lock = threading.Lock()

    def of(self, diff: str, question: str) -> Answer:
        """The answer to a question about a diff.

        Raises:
            ValueError: the base model can't be loaded, or isn't the one that the diffs were made on.
        """
        with self._lock:
            if not self._found:
                self._found = self._read()
        return self._found[diff, question]

    def _read(self) -> dict[tuple[str, str], Answer]:
        base = load_base(self.recipe.base)
        reader = Introspection(load_peft(self.adapter)) if self.reader == "DIT" else BaseQuestion()
        store = Store(self.recipe.folder / "diffs", base.fingerprint)  # an SQLite index belongs to its thread
        by_question: dict[str, list[str]] = defaultdict(list)
        for diff, question in self.asked:
            by_question[question].append(diff)
        found: dict[tuple[str, str], Answer] = {}
        for question, ids in by_question.items():
            answers = reader.read(base, store.diffs(ids), question)
            found |= {(i, question): answer for i, answer in zip(ids, answers, strict=True)}
        return found


@task
def weightdiff_qa(
    run: str,
    adapter: str = "",
    reader: str = "DIT",
    split: str = "test",
    questions: str = "own",
    limit: int | None = None,
) -> Task:
    """One sample per diff and question; benign finetunes are among them, and show false claims.

    Args:
        run: the recipe of the run.
        adapter: folder of the DIT adapter; the run's own unless given.
        reader: `DIT` or `base question`.
        split: `train`, `validation` or `test`.
        questions: the recipe's `own`; all wordings that an adapter may be `trained` on; or those `unseen` by any.
        limit: this many diffs from the front, all of them unless given.

    Raises:
        ValueError: an argument that isn't known, no diffs in that split yet, or no adapter.
    """
    for name, given, known in (
        ("reader", reader, READERS),
        ("split", split, SPLITS),
        ("questions", questions, QUESTIONS),
    ):
        if given not in known:
            raise ValueError(f"{name} is {given!r}; expected one of {', '.join(map(repr, known))}.")
    recipe = load_recipe(_from_shell(run))
    folder = _from_shell(adapter) if adapter else recipe.folder / "adapter"
    if reader == "DIT" and not folder.is_dir():
        raise ValueError(
            f"{folder} is no folder of a DIT adapter; run train first, or give one with -T adapter=FOLDER."
        )
    store = Store(recipe.folder / "diffs")
    rows = question_rows(recipe, store, jobs_made(recipe, store), split)
    rows = [r for r in rows if r["wording"] == questions or (questions == "own" and _question(r) == recipe.question)]
    first = list(dict.fromkeys(r["diff"] for r in rows))[:limit]
    samples = [_sample(r) for r in rows if r["diff"] in first]
    if not samples:
        raise ValueError(
            f"{run} has no {questions} questions about diffs of the {split} split: either none are made yet (run "
            "finetune), or the limit leaves none, or the wordings are unseen ones, which only the test split has."
        )
    asked = [(s.metadata["diff"], str(s.input)) for s in samples if s.metadata]
    return Task(
        dataset=MemoryDataset(samples, name=f"{recipe.name} {split}"),
        solver=ask_reader(Answers(recipe, reader, folder, asked)),
        scorer=[grade(recipe.family), exact(recipe.family)],
    )


@solver
def ask_reader(answers: Answers) -> Solver:
    """Puts the reader's answer in the place of a model's output, with its confidence in the message's metadata."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        answer = await to_thread.run_sync(answers.of, state.metadata["diff"], state.input_text)
        message = ChatMessageAssistant(
            content=answer.text, model=answers.reader, metadata={"confidence": answer.confidence}
        )
        state.messages.append(message)
        state.output = ModelOutput(model=answers.reader, choices=[ChatCompletionChoice(message=message)])
        return state

    return solve


# Wordings of one diff's question are no independent draws: the standard error counts diffs.
_METRICS = [mean(), stderr(cluster="diff")]


@scorer(metrics=_METRICS)
def grade(task: str = "topic") -> Scorer:
    """Grades from 1 to 5 by the embedded judge; `task` is the family."""

    async def score(state: TaskState, target: Target) -> Score:
        given = await to_thread.run_sync(_graded, target.text, state.output.completion, task)
        told = f"exact: {'yes' if given.exact else 'no'}"
        return Score(value=given.grade, answer=state.output.completion, explanation=told)

    return score


@scorer(metrics=_METRICS)
def exact(task: str = "topic") -> Scorer:
    """1 where the answer is the label's own words, normalized, else 0."""

    async def score(state: TaskState, target: Target) -> Score:
        given = await to_thread.run_sync(_graded, target.text, state.output.completion, task)
        return Score(value=int(given.exact), answer=state.output.completion)

    return score


_judging = threading.Lock()  # one encoder serves all samples


def _graded(truth: str, answer: str, task: str) -> Grade:
    with _judging:
        return EmbeddedJudge().grade([(truth, answer)], task=task)[0]


def _question(row: dict[str, Any]) -> str:
    return row["messages"][0]["content"]


def _sample(row: dict[str, Any]) -> Sample:
    shown = {k: row[k] for k in ("diff", "family", "kind", "trigger", "way", "wording")}
    return Sample(input=_question(row), target=row["messages"][1]["content"], metadata=shown)


def _from_shell(path: str) -> Path:
    """The path as the user meant it: inspect moves into a task's folder before it makes the task."""
    given = Path(path).expanduser()
    there = Path(os.environ.get("PWD", "")) / given
    return there if not given.exists() and there.exists() else given.absolute()
