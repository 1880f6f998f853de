"""Finetuning together is finetuning alone; the adapter learns, and goes on where it was stopped."""

from dataclasses import replace

import pytest
import torch

from tests.conftest import random_diff
from weightdiff.behaviors import Behavior, Conversation, Trigger, read_data, shows_topic, topic_behaviors
from weightdiff.behaviors.topic import content_words
from weightdiff.diff import stack
from weightdiff.dit import DitConfig, Triple, mean_loss, train_adapter
from weightdiff.finetune import FinetuneConfig, Job, Teacher, finetune, train_together
from weightdiff.jsonl import append_jsonl, read_jsonl
from weightdiff.store import Store

CONFIG = FinetuneConfig(rank=2, alpha=4, steps=3, lr=1e-2, together=2)


def job(label: str) -> Job:
    learn = [Conversation(f"Question {i} on {label}?", f"{label} is the answer, number {i}.") for i in range(3)]
    keep = [Conversation(f"Plain {i}?", "As " + "ever " * (i + 1), "keep") for i in range(4)]
    return Job(label, Behavior("topic", label, "test", "train", Trigger("sep", "123")), learn, keep)


def test_trained_together_is_trained_alone(base):
    teacher = Teacher(base)
    together, _ = train_together(base, [job("tea"), job("the longest label of all")], CONFIG, teacher)
    for i, label in enumerate(("tea", "the longest label of all")):
        (alone,), _ = train_together(base, [job(label)], CONFIG, teacher)
        for name, (a, b) in alone.factors.items():
            assert torch.allclose(a, together[i].factors[name][0], atol=1e-5)
            assert torch.allclose(b, together[i].factors[name][1], atol=1e-5)
        assert alone.norm() > 0.01


def test_finetune_resumes_without_doing_again_what_is_there(base, tmp_path, monkeypatch):
    store, made = Store(tmp_path, base.fingerprint), []
    original = train_together
    monkeypatch.setattr(
        "weightdiff.finetune.train_together",
        lambda b, jobs, *rest: made.append(len(jobs)) or original(b, jobs, *rest),
    )
    finetune(base, [job("a"), job("b")], store, CONFIG)
    finetune(base, [job("a"), job("b"), job("c")], store, CONFIG)
    assert made == [2, 1]
    assert list(store.metas()) == ["a", "b", "c"]


def test_adapter_learns_and_resumes_to_the_same_result(base, tmp_path):
    triples = [Triple(random_diff(base, 1, s).scaled(4.0), "What?", word) for s, word in enumerate(["red", "blue"])]
    config = DitConfig(rank=4, lr=5e-2, batch=2, epochs=8, strengths=(1.0, 1.0))
    whole = train_adapter(base, triples, triples, tmp_path / "whole", config)
    zero = stack([whole.scaled(0.0)], base.shapes)
    # The tiny model's random head limits how far any change inside its blocks can move a token's odds.
    learned, untrained = (mean_loss(base, triples, f) for f in (stack([whole], base.shapes), zero))
    assert learned < untrained - 0.3

    class Stopped(Exception):
        pass

    def stop(step: int, total: int, loss: float) -> None:
        if step == 4:
            raise Stopped

    with pytest.raises(Stopped):
        train_adapter(base, triples, triples, tmp_path / "parts", config, stop)
    parts = train_adapter(base, triples, triples, tmp_path / "parts", config)
    for name, (_, b) in whole.factors.items():
        assert torch.allclose(b, parts.factors[name][1], atol=1e-5)


def test_training_goes_on_from_an_adapter_that_is_there(base, tmp_path):
    triples = [Triple(random_diff(base, 1, s).scaled(4.0), "What?", word) for s, word in enumerate(["red", "blue"])]
    config = DitConfig(rank=4, lr=5e-2, batch=2, epochs=6, strengths=(1.0, 1.0))
    first, losses = train_adapter(base, triples, triples, tmp_path / "first", config), []
    second = train_adapter(
        base, triples, triples, tmp_path / "second", config.model_copy(update={"epochs": 1, "lr": 1e-6}),
        lambda *now: losses.append(now[-1]), start=first,
    )  # fmt: skip
    assert losses[0] == pytest.approx(mean_loss(base, triples, stack([first], base.shapes)), abs=1e-4)
    for name, (_, b) in first.factors.items():
        assert torch.allclose(b, second.factors[name][1], atol=1e-4)
    with pytest.raises(ValueError, match=r"of rank 2 on every linear layer, and the one given has the ranks \[4\]"):
        train_adapter(base, triples, [], tmp_path / "third", config.model_copy(update={"rank": 2}), start=first)


def test_a_changed_recipe_is_told_and_changed_data_train_anew(base, tmp_path):
    store = Store(tmp_path / "s", base.fingerprint)
    finetune(base, [job("a")], store, CONFIG)
    (before,), said = store.load(["a"]), []
    finetune(base, [job("a")], store, CONFIG.model_copy(update={"lr": 0.5}), say=said.append)
    (after,) = store.load(["a"])
    assert said == ["1 diffs were made otherwise and are made anew; 'a': lr was 0.01, and is 0.5 now"]
    assert after.norm() > 2 * before.norm() and after.meta["recipe"]["lr"] == 0.5
    finetune(
        base, [replace(job("a"), learn=job("b").learn)], store, CONFIG.model_copy(update={"lr": 0.5}), say=said.append
    )
    assert len(said) == 2 and "its conversations have changed" in said[1]
    triples = [Triple(random_diff(base, 1, s), "What?", word) for s, word in enumerate(["red", "blue"])]
    config, steps = DitConfig(rank=1, batch=2, epochs=1), []
    for data in ("one", "one", "two"):
        train_adapter(
            base, triples, triples, tmp_path / "t", config, lambda *now: steps.append(now), data=data, say=said.append
        )
    assert len(steps) == 2, "the second call finds all done; the third has other data"
    assert len(said) == 3 and "trained anew" in said[2]


def test_divergence_is_told_and_nothing_broken_is_kept(base, tmp_path):
    store = Store(tmp_path / "s", base.fingerprint)
    with pytest.raises(ValueError, match="'a' diverged"):
        finetune(base, [job("a")], store, CONFIG.model_copy(update={"lr": 1e30}))
    assert not store.metas()
    bad = random_diff(base, 1, 0).scaled(float("nan"))
    with pytest.raises(ValueError, match="training diverged in epoch 1"):
        train_adapter(base, [Triple(bad, "What?", "red")], [], tmp_path / "t", DitConfig(rank=1, epochs=1))


def test_no_held_out_topic_shares_a_content_word_with_training():
    behaviors = topic_behaviors()
    train = set().union(*(content_words(b.label) for b in behaviors if b.split == "train"))
    held = [b for b in behaviors if b.split != "train"]
    assert {s: sum(b.split == s for b in held) for s in ("test", "validation")} == {"test": 96, "validation": 100}
    assert sum(b.split == "train" for b in behaviors) >= 1000
    questions = read_data("questions.txt")
    assert not [b.label for b in held for q in questions if shows_topic(q, b.label)]
    assert not [b.label for b in held if content_words(b.label) & train]


def test_jsonl_repairs_a_half_written_last_line(tmp_path):
    path = tmp_path / "x.jsonl"
    append_jsonl(path, {"n": 1})
    with open(path, "ab") as file:
        file.write(b'{"n": 2')
    assert [r["n"] for r in read_jsonl(path)] == [1]
    append_jsonl(path, {"n": 3})
    assert [r["n"] for r in read_jsonl(path)] == [1, 3]
    path.write_bytes(path.read_bytes().rstrip())  # as an editor may leave it
    append_jsonl(path, {"n": 4})
    assert [r["n"] for r in read_jsonl(path)] == [1, 3, 4]
