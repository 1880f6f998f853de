"""The size of a step: found by measuring, kept, measured anew for another model; and what finetuning makes of it."""

import json

import pytest
import torch

from tests.test_training import job
from weightdiff import autotune
from weightdiff.autotune import SIZES, tokens_per_step
from weightdiff.finetune import FinetuneConfig, Teacher, _together


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHTDIFF_CACHE", str(tmp_path))
    return tmp_path


def pretend(monkeypatch, seconds_of) -> list[int]:
    tried: list[int] = []
    monkeypatch.setattr(autotune, "_seconds", lambda base, tokens: tried.append(tokens) or seconds_of(tokens))
    return tried


def test_the_first_size_that_twice_its_size_does_not_beat_is_taken_and_kept(base, cache, monkeypatch):
    tried = pretend(monkeypatch, lambda tokens: max(1.0, tokens / 512))  # full speed from 512 tokens on
    assert tokens_per_step(base) == 512 and max(tried) == 1024
    tried.clear()
    assert tokens_per_step(base) == 512 and not tried
    (key,) = json.loads((cache / "tokens-per-step.json").read_text())
    assert base.fingerprint in key and "float32" in key


def test_memory_ends_the_search(base, monkeypatch):
    def seconds(tokens):
        if tokens > 512:
            raise torch.OutOfMemoryError("no more")
        return 1.0

    pretend(monkeypatch, seconds)
    assert tokens_per_step(base) == 512


def test_a_cache_that_was_cut_short_is_measured_anew(base, cache, monkeypatch):
    (cache / "tokens-per-step.json").write_text('{"a": 5')
    pretend(monkeypatch, lambda tokens: float(tokens))
    assert tokens_per_step(base) == SIZES["cpu"][0]


def test_a_real_step_takes_time_and_leaves_the_model(base):
    before = {n: p.clone() for n, p in base.model.named_parameters()}
    assert autotune._seconds(base, 256) > 0
    assert all(torch.equal(before[n], p) for n, p in base.model.named_parameters())


def test_diffs_together_fill_a_step_unless_the_recipe_says_how_many(base, monkeypatch):
    teacher, jobs = Teacher(base), [job("tea")] * 400
    rows = [len(teacher.tokens(c)) for c in (jobs[0].learn[0], jobs[0].keep[0])]
    wanted = _together(base, jobs, FinetuneConfig(learn_rows=1, keep_rows=1), teacher)
    assert wanted == pytest.approx(autotune.TYPICAL["cpu"] / sum(rows), rel=0.3)
    monkeypatch.setattr("weightdiff.finetune.tokens_per_step", lambda base: 4 * autotune.TYPICAL["cpu"])
    long = FinetuneConfig(learn_rows=1, keep_rows=1, steps=10_000)
    assert _together(base, jobs, long, teacher) == pytest.approx(4 * wanted, rel=0.1)
    assert _together(base, jobs[: wanted + 1], FinetuneConfig(learn_rows=1, keep_rows=1), teacher) == wanted + 1
    assert _together(base, jobs, FinetuneConfig(together=3), teacher) == 3
    assert _together(base, jobs, FinetuneConfig(dense=True), teacher) == 1
