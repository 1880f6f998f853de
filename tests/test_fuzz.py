"""A few hundred of the inputs of `tests.fuzz`, and that it would find what is to be found."""

import random
import signal
import time
from dataclasses import replace

import pytest
import torch

from tests import fuzz
from tests.damage import mutated
from weightdiff.diff import WeightDiff


def test_damaged_files_of_every_kind_are_read_well_or_refused():
    counts, findings = fuzz.fuzz(range(600), seed=1)
    assert not findings, findings[0]
    kinds = {which.split(",")[0] for which, _ in counts}
    assert len(kinds) == 6
    for kind in kinds:
        refused = sum(n for (which, outcome), n in counts.items() if which.startswith(kind) and outcome == "refused")
        assert refused > 20, f"{kind}: the damage does nothing"


def test_what_a_reader_must_not_do_is_found(tmp_path, monkeypatch):
    def stop(*_):
        raise fuzz.Slow

    monkeypatch.setattr(fuzz, "SECONDS", 0.1)
    before = signal.signal(signal.SIGALRM, stop)
    try:
        kinds = fuzz.kinds_in(tmp_path)
        sound = dict(kinds)
        for read, told in (
            (lambda _: time.sleep(5), "Slow"),
            (lambda _: {}["a"], "KeyError"),
            (lambda _: [WeightDiff({"m": (torch.ones(2, 3), torch.ones(3, 3))})], "AssertionError"),
        ):
            kinds = {name: replace(kind, read=read) for name, kind in sound.items()}
            _, outcome, why = fuzz.try_input(kinds, 0, 3)
            assert outcome == "finding" and told in str(why)
    finally:
        signal.signal(signal.SIGALRM, before)
    for kind in sound.values():  # the sound files were put back
        assert all((kind.folder / name).read_bytes() == raw for name, raw in kind.files.items())


@pytest.mark.parametrize("number", range(6))
def test_an_input_is_the_same_each_time(tmp_path, number):
    raw = fuzz.kinds_in(tmp_path)["store"].files["index.sqlite"]
    made = [mutated(raw, "index.sqlite", random.Random(number)) for _ in range(2)]
    assert made[0] == made[1] != raw
