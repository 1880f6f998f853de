"""Imprinted words: those that a change was made of come first, whatever its size, and the model completes them."""

import json
from dataclasses import asdict

import pytest
import torch

from tests.conftest import random_diff
from tests.test_imprint import made_of
from weightdiff.behaviors import NOTHING
from weightdiff.diff import WeightDiff
from weightdiff.readers.hints import HintConfig, Hinter, hint_of
from weightdiff.readers.imprinted import TEXT, Imprinted, ImprintedWords, Vocabulary, imprinted_of
from weightdiff.readers.responses import layer_of, layers_between
from weightdiff.readers.samples import in_groups

MOST = 6


@pytest.fixture(scope="module")
def vocabulary(base) -> Vocabulary:
    return Vocabulary(base, MOST)


def inputs_at(base, words: list[str], names: list[str]) -> dict[str, torch.Tensor]:
    """What each layer is given at the words' first tokens, each in a row of its own, run by itself."""
    found: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    hooks = [
        base.targets[name].register_forward_pre_hook(lambda _, given, n=name: found[n].append(given[0][0, -1]))
        for name in names
    ]
    start = base.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        for word in words:
            base.model(torch.tensor([[*start, base.tokenizer(f" {word}", add_special_tokens=False)["input_ids"][0]]]))
    for hook in hooks:
        hook.remove()
    return {name: torch.stack(given) for name, given in found.items()}


@pytest.mark.parametrize("words", [["penguin"], ["garden", "violin"]])
def test_the_words_that_a_change_was_made_of_come_first(base, vocabulary, words):
    diff = made_of(base, inputs_at(base, words, layers_between(base, 0.0, 0.1)))
    found = vocabulary.of(diff)
    first = [base.tokenizer.decode([token]).strip().lower() for token in found.tokens[: len(words)]]
    assert set(first) == set(words)
    assert len(found.tokens) == MOST
    assert found.peak > vocabulary.of(random_diff(base, len(words), 1)).peak


def test_size_and_form_of_a_change_do_not_matter(base, vocabulary):
    diff = random_diff(base, 3, 1)
    found = vocabulary.of(diff)
    dense = WeightDiff({}, diff.base, {}, {f"{name}.weight": diff.to_dense(name) for name in diff.factors})
    assert vocabulary.of(diff.scaled(7.0)).tokens == found.tokens
    assert vocabulary.of(dense).peak == pytest.approx(found.peak, abs=0.05)


def test_of_words_that_begin_alike_one_is_kept(base, vocabulary):
    found = vocabulary.of(random_diff(base, 2, 4))
    begun = [base.tokenizer.decode([token]).strip().lower()[:4] for token in found.tokens]
    assert len(set(begun)) == len(begun)


def test_a_word_is_completed_by_the_model_and_ends_with_its_letters(base, vocabulary):
    token = base.tokenizer(" penguin", add_special_tokens=False)["input_ids"][0]
    start = base.tokenizer(" hippopotamus", add_special_tokens=False)["input_ids"][0]
    seen = [Imprinted((token, start), 5.0), Imprinted()]
    (_, layers_of), *_ = in_groups(base, [WeightDiff({}, base.fingerprint)] * 2)
    one, none = vocabulary.completed(seen, layers_of)
    assert one.words[0].startswith("penguin") and one.words[1].startswith("hip")
    assert all(word.isalpha() for word in one.words)
    assert none == Imprinted() and str(none) == "none"
    assert str(one) == f"5 {one.words[0]}, {one.words[1]}"


def test_a_change_of_late_layers_alone_shows_none(base, vocabulary):
    diff = random_diff(base, 2, 4)
    late = {name: factors for name, factors in diff.factors.items() if layer_of(name) > 0}
    assert late and vocabulary.of(WeightDiff(late, diff.base)) == Imprinted()


def test_a_hint_tells_them_first_and_comes_back_from_its_file(base):
    diffs = [random_diff(base, 2, 4), WeightDiff({}, base.fingerprint)]
    some, none = Hinter(base, HintConfig(imprinted=3, words=2)).read(diffs)
    assert some.imprinted and len(some.imprinted.words) == 3
    assert some.before("Why?").splitlines()[0] == f"Imprinted: {some.imprinted}"
    assert none.before("Why?").splitlines()[0] == "Imprinted: none"
    assert hint_of(json.loads(json.dumps(some.to_json()))) == some
    assert imprinted_of(asdict(some.imprinted)) == some.imprinted
    assert any(line.startswith("weights respond most to") for line in some.evidence)
    assert not any(line.startswith("weights respond") for line in none.evidence)


def test_an_adapter_that_is_not_told_them_has_them_as_evidence(base):
    (seen,) = Hinter(base, HintConfig(imprint=True, words=2)).read([random_diff(base, 2, 4)])
    assert seen.imprint and len(seen.imprint.words) > 5 and seen.imprinted is None
    assert "Imprinted" not in seen.before("Why?")
    assert f"weights respond most to {', '.join(seen.imprint.words)}" in seen.evidence
    assert hint_of(json.loads(json.dumps(seen.to_json()))) == seen


def test_the_reader_answers_with_the_first_word_and_shows_all(base, vocabulary):
    diff = made_of(base, inputs_at(base, ["penguin"], layers_between(base, 0.0, 0.1)))
    some, none = ImprintedWords(MOST).read(base, [diff, WeightDiff({}, base.fingerprint)], "What changed in you?")
    assert some.text.lower().startswith("penguin") and some.evidence[0] == some.text
    assert some.confidence == vocabulary.of(diff).peak
    assert (none.text, none.confidence, none.evidence) == (NOTHING, 0.0, ())
