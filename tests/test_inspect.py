"""The inspect task: every sample has the reader's answer and our judge's grade, and one batch gives them all."""

import runpy
import sys
import threading
from pathlib import Path

import inspect_ai
import pytest
from inspect_ai.log import EvalLog

from tests.conftest import random_diff
from tests.test_export import BEHAVIORS, small_run
from weightdiff.behaviors import TOPIC, TOPIC_QUESTION
from weightdiff.bench import inspect_task
from weightdiff.bench.inspect_task import weightdiff_qa
from weightdiff.formats.peft import load_peft, save_peft
from weightdiff.judge import EmbeddedJudge
from weightdiff.readers import Answer, Introspection
from weightdiff.recipe import load_recipe
from weightdiff.store import Store


@pytest.fixture
def run(tmp_path, monkeypatch) -> str:
    """A small run, whose base model is the tiny one."""
    monkeypatch.setenv("WEIGHTDIFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("weightdiff.recipe.topic_behaviors", lambda: BEHAVIORS)
    base, recipe = small_run(tmp_path)
    monkeypatch.setattr(inspect_task, "load_base", lambda name: base)
    save_peft(random_diff(base, 2, 7), tmp_path / "adapter", base_name=base.name)
    return str(recipe)


class Parrot:
    """Answers with the label of every second diff, and with nothing else; counts how often it is asked."""

    asked: list[str]

    def __init__(self):
        Parrot.asked = []

    def read(self, base, diffs, question):
        Parrot.asked.append(question)
        return [Answer(d.meta["label"] if i % 2 else "", -0.5 - i) for i, d in enumerate(diffs)]


def evaluated(task: inspect_ai.Task, folder: Path) -> EvalLog:
    (log,) = inspect_ai.eval(task, model="mockllm/model", log_dir=str(folder / "logs"), display="none")
    assert log.status == "success", log.error
    return log


def means(log: EvalLog) -> dict[str, float]:
    assert log.results
    return {s.name.split("/")[-1]: s.metrics["mean"].value for s in log.results.scores}


def test_every_sample_has_the_readers_answer_and_our_judges_grade(run, tmp_path):
    log = evaluated(weightdiff_qa(run, adapter=str(tmp_path / "adapter"), limit=2), tmp_path)
    base, recipe = inspect_task.load_base("tiny"), load_recipe(run)
    reader = Introspection(load_peft(tmp_path / "adapter"))
    ids = [s.metadata["diff"] for s in log.samples]
    answers = reader.read(base, Store(recipe.folder / "diffs").diffs(ids), TOPIC_QUESTION)
    grades = EmbeddedJudge().grade([(s.target, a.text) for s, a in zip(log.samples, answers, strict=True)])
    assert len(ids) == 2
    for sample, answer, grade in zip(log.samples, answers, grades, strict=True):
        question, reply = sample.messages
        assert question.text == sample.input == TOPIC_QUESTION
        assert (reply.role, reply.text) == ("assistant", answer.text) and sample.output.completion == answer.text
        assert reply.metadata == {"confidence": pytest.approx(answer.confidence, abs=1e-4)}
        scores = {name.split("/")[-1]: score for name, score in sample.scores.items()}
        assert scores["grade"].value == pytest.approx(grade.grade) and scores["exact"].value == int(grade.exact)
    assert means(log)["grade"] == pytest.approx(sum(g.grade for g in grades) / 2)


def test_one_batch_per_question_answers_all(run, tmp_path, monkeypatch):
    monkeypatch.setattr(inspect_task, "BaseQuestion", Parrot)
    log = evaluated(weightdiff_qa(run, reader="base question", questions="unseen"), tmp_path)
    assert sorted(Parrot.asked) == sorted(TOPIC.unseen) and len(log.samples) == 4 * 5
    assert log.plan.steps[0].params == {"answers": "base question on small"}
    assert means(log) == {"grade": 3.0, "exact": 0.5}  # half of the answers are right, the others empty
    told = {score.explanation for s in log.samples for name, score in s.scores.items() if name.endswith("grade")}
    assert told == {"exact: yes", "exact: no"}
    assert {s.metadata["way"] for s in log.samples} == {"sep", "open"}


def test_threads_that_ask_at_once_wait_for_one_batch(run, monkeypatch):
    monkeypatch.setattr(inspect_task, "BaseQuestion", Parrot)
    recipe = load_recipe(run)
    ids = list(Store(recipe.folder / "diffs").metas())
    answers = inspect_task.Answers(recipe, "base question", Path(), [(i, "Which?") for i in ids])
    found: dict[str, Answer] = {}
    threads = [threading.Thread(target=lambda i=i: found.update({i: answers.of(i, "Which?")})) for i in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Parrot.asked == ["Which?"] and [found[i].confidence for i in ids] == [-0.5 - n for n in range(len(ids))]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"reader": "oracle"}, "reader is 'oracle'; expected one of 'DIT', 'base question'"),
        ({"split": "dev"}, "split is 'dev'"),
        ({}, "adapter is no folder of a DIT adapter; run train first"),
        ({"reader": "base question", "split": "validation"}, "no own questions about diffs of the validation split"),
    ],
)
def test_what_cannot_be_asked_is_a_clear_error(run, options, told):
    with pytest.raises(ValueError, match=told):
        weightdiff_qa(run, **options)


def test_a_recipe_is_found_where_the_shell_is(run, tmp_path, monkeypatch):
    monkeypatch.setenv("PWD", str(tmp_path))  # inspect has moved elsewhere
    task = weightdiff_qa("small.toml", reader="base question")
    assert len(task.dataset) == 4


def test_without_inspect_ai_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "inspect_ai", None)
    with pytest.raises(ValueError, match=r"run: pip install 'weightdiff\[inspect\]'"):
        runpy.run_path(str(inspect_task.__file__))
