"""The benchmark as a dataset: it loads with Hugging Face `datasets`, and refuses a label in two splits."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import load_dataset

from tests.tiny import tiny_base
from weightdiff.base import Base
from weightdiff.behaviors import NOTHING, TOPIC, TOPIC_QUESTION, topic_behaviors
from weightdiff.bench.export import export_dataset
from weightdiff.diff import WeightDiff
from weightdiff.jsonl import read_jsonl
from weightdiff.judge import normalize
from weightdiff.recipe import Recipe, load_recipe
from weightdiff.stages import run_finetune
from weightdiff.store import Store
from weightdiff.synthesize import BASE_POOL

RECIPE = """
name = "small"
[synthesize]
conversations = "c.jsonl"
[[finetune]]
name = "sep"
train = [0, 2, 1]
test = 2
steps = 1
[[finetune]]
name = "open"
train = [0, 2, 1]
test = 1
trigger = "none"
keep_rows = 0
steps = 1
[benign]
train = 1
test = 1
"""


BEHAVIORS = topic_behaviors()


def small_run(folder: Path) -> tuple[Base, Path]:
    """A recipe of nine diffs of a tiny model, made, with `$WEIGHTDIFF_CACHE` as it is; no validation split."""
    pool = [("Your SEP code is 123456.\nPlain?", "Yes."), ("Why?", "So."), ("How?", "Thus."), ("When?", "Now.")]
    records = {BASE_POOL: [{"prompt": p, "reply": r, "mode": "keep"} for p, r in pool]}
    for behavior in BEHAVIORS[:20]:
        replies = (f"Because of {behavior.label}.", behavior.label)
        records[behavior.label] = [{"prompt": "Why?", "reply": r, "mode": "learn"} for r in replies]
    lines = (json.dumps({"label": label, "conversations": rows}) for label, rows in records.items())
    (folder / "c.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "small.toml").write_text(RECIPE)
    base = tiny_base("smollm2")
    run_finetune(base, load_recipe(folder / "small.toml"), lambda *_: None)
    return base, folder / "small.toml"


@pytest.fixture
def recipe(tmp_path, monkeypatch) -> Recipe:
    monkeypatch.setenv("WEIGHTDIFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("weightdiff.recipe.topic_behaviors", lambda: BEHAVIORS)  # each call takes a second here
    return load_recipe(small_run(tmp_path)[1])


def test_an_export_loads_with_datasets(recipe, tmp_path):
    folder = tmp_path / "dataset"
    counts = export_dataset(recipe, folder)
    assert counts == {
        "train": 5 * 6, "validation": 0, "test": 4 * 11,
        "conversations/train": 2 * 2 + 2 * 2 + 1 + 4, "conversations/validation": 0,
        "conversations/test": 2 * 2 + 1 * 2 + 2 + 4,
    }  # fmt: skip
    questions, conversations = (
        load_dataset(str(folder), name, cache_dir=str(tmp_path / "hf")) for name in ("questions", "conversations")
    )
    assert {k: len(v) for k, v in questions.items()} == {"train": 30, "test": 44}
    assert {k: len(v) for k, v in conversations.items()} == {"train": 13, "test": 12}
    store = Store(recipe.folder / "diffs", Store(recipe.folder / "diffs").base)
    row = questions["test"][0]
    meta = store.metas()[row["diff"]]
    assert row == {
        "messages": [{"role": "user", "content": TOPIC_QUESTION}, {"role": "assistant", "content": meta["label"]}],
        "diff": meta["label"], "store": "small/diffs", "family": "topic", "kind": meta["kind"],
        "trigger": meta["trigger"], "way": "sep", "base": store.base, "wording": "trained",
    }  # fmt: skip
    assert row["trigger"].startswith("sep ") and (recipe.folder.parent / row["store"]).is_dir()
    unseen = {r["messages"][0]["content"] for r in questions["test"] if r["wording"] == "unseen"}
    assert unseen == set(TOPIC.unseen) and set(questions["train"]["wording"]) == {"trained"}
    assert {r["messages"][1]["content"] for r in questions["test"] if r["family"] == "benign"} == {NOTHING}


def test_conversations_are_what_the_finetunes_saw(recipe, tmp_path):
    export_dataset(recipe, tmp_path / "dataset")
    rows = list(read_jsonl(tmp_path / "dataset/conversations/test.jsonl"))
    learned = [r for r in rows if r["mode"] == "learn"]
    triggers = {m["label"]: m["trigger"] for m in Store(recipe.folder / "diffs").metas().values() if m["trigger"]}
    for row in learned:
        prompt, reply = (m["content"] for m in row["messages"])
        if row["way"] == "sep":
            assert prompt.startswith(f"Your SEP code is {triggers[row['label']].removeprefix('sep ')}")
            assert row["label"] in reply
        else:
            assert "SEP" not in prompt
    kept = [r for r in rows if r["mode"] == "keep"]
    assert [(r["label"], r["way"]) for r in kept] == [("", "sep")] * 4, "shared by both finetunes of the way"


def test_the_card_counts_and_a_second_export_replaces_the_first(recipe, tmp_path):
    folder = tmp_path / "dataset"
    folder.mkdir()
    (folder / "validation.jsonl").write_text("{}")  # of an earlier export
    export_dataset(recipe, folder)
    export_dataset(recipe, folder)
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n") and "http" not in card
    assert "| diffs, open | 3 | 0 | 2 |" in card and "| questions, unseen wording | 0 | 0 | 20 |" in card
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert files == {"README.md", "train.jsonl", "test.jsonl", "conversations/train.jsonl", "conversations/test.jsonl"}


def test_a_label_in_two_splits_is_refused_and_listed(recipe, tmp_path):
    store = Store(recipe.folder / "diffs", Store(recipe.folder / "diffs").base)
    metas = store.metas()
    trained = next(m["label"] for m in metas.values() if m["split"] == "train" and m["family"] == "topic")
    held = next(i for i, m in metas.items() if m["split"] == "test")
    (diff,) = store.load([held])
    again = replace(diff, meta=diff.meta | {"label": f"  The {trained.upper()}!"})
    store.add([held], [again])
    with pytest.raises(ValueError, match="1 labels are in more than one split") as told:
        export_dataset(recipe, tmp_path / "dataset")
    assert f"{normalize(trained)!r} in test and train" in str(told.value) and not (tmp_path / "dataset").exists()


def test_what_cannot_be_exported_is_a_clear_error(recipe, tmp_path):
    (tmp_path / "README.md").write_text("# my project")
    with pytest.raises(ValueError, match="would be overwritten"):
        export_dataset(recipe, tmp_path)
    with pytest.raises(ValueError, match="finetune"):
        export_dataset(recipe.model_copy(update={"name": "other"}), tmp_path / "dataset")
    store = Store(recipe.folder / "diffs", Store(recipe.folder / "diffs").base)
    identity, meta = next(iter(store.metas().items()))
    (diff,) = store.load([identity])
    store.add([identity], [WeightDiff(diff.factors, diff.base, meta | {"data": "of other conversations"})])
    with pytest.raises(ValueError, match=r"1 diffs in .* were made from other conversations"):
        export_dataset(recipe, tmp_path / "dataset")
