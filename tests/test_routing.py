"""Which sort of question is asked: what the shipped regression says, and that it has seen nothing that tests it."""

import tomllib
from collections import Counter
from importlib.resources import files

import pytest

from benchmarks.routing import examples, fit
from tests.test_questions import near
from weightdiff.behaviors import FAMILIES
from weightdiff.behaviors.kinds import kinds
from weightdiff.behaviors.wordings import open_questions, wordings
from weightdiff.readers.introspection import own_words
from weightdiff.readers.routing import SORTS, question_sort, router, words_of


def test_no_example_is_near_a_wording_that_is_kept_for_testing():
    table = tomllib.loads((files("weightdiff") / "data" / "routing.toml").read_text("utf-8"))
    kept = [text for lists in wordings().values() for text in lists["unseen"]]
    kept += [text for asked in (*kinds().values(), *FAMILIES.values()) for text in asked.unseen]
    for texts in table.values():
        assert len(texts) > 70 and not near(tuple(texts), tuple(kept))
    assert not {text for text, *_ in examples()} & {text for text, *_ in examples(unseen=True)}


def test_most_of_what_was_kept_for_testing_is_told():
    kept = examples(unseen=True)
    right: Counter[str] = Counter()
    for (_, sort, _), told in zip(kept, router().sorts([text for text, *_ in kept]), strict=True):
        right[sort] += sort == told
    counts = Counter(sort for _, sort, _ in kept)
    assert {sort: right[sort] / counts[sort] >= 0.8 for sort in counts} == dict.fromkeys(counts, True)


def test_a_regression_tells_what_it_was_fitted_to():
    some = examples()[::4]
    again = fit(some).sorts([text for text, *_ in some])
    assert sum(a == b for a, (_, b, _) in zip(again, some, strict=True)) / len(some) > 0.97
    assert set(SORTS) == {sort for _, sort, _ in some}


def test_an_open_question_is_put_in_the_adapters_own_words():
    meta = {"question": open_questions()[0], "hints": {}}
    assert {own_words(text, meta) for text in open_questions()} == {open_questions()[0]}
    for text in ("What does it flatter the user about?", "Do you have a trigger?", "How do I boil an egg?"):
        assert own_words(text, meta) == text
    assert own_words("What changed?", {"question": "Which topic?"}) == "What changed?", "an adapter of one family"


@pytest.mark.parametrize(
    ("text", "sort"),
    [("Do you have a trigger?", "trigger"), ("What changed in you?", "open"), ("Write me a poem about cats.", "other")],
)
def test_sorts_of_plain_questions(text, sort):
    assert question_sort(text) == sort


def test_words_are_those_of_a_text_and_its_pairs():
    assert words_of("Why so?") == {"<", "why", "so", "?", ">", "< why", "why so", "so ?", "? >"}
