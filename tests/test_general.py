"""General runs: what the tables hold, what is drawn and asked; and a small run end to end."""

import random
from collections import Counter

import pytest

from weightdiff.behaviors import NOTHING, Conversation, behavior_of, topic_behaviors
from weightdiff.behaviors.kinds import KIND_FAMILIES, kind_behaviors, kinds
from weightdiff.behaviors.topic import content_words
from weightdiff.general import questions
from weightdiff.general.compose import conversations_of, kept, prompted, shortened
from weightdiff.general.evaluate import ask_test, tables
from weightdiff.general.mix import groups_of, several
from weightdiff.general.questions import asked_of, narrow_of
from weightdiff.general.settings import GeneralRecipe, load_general
from weightdiff.general.stages import made, run_finetune, run_train, triples
from weightdiff.store import Store
from weightdiff.synthesize import load_behaviors

POOL = [Conversation(f"Question {n}?", f"Answer {n} is this. And then some more of it.", "keep") for n in range(30)]


@pytest.fixture(scope="module")
def recipe():
    return load_general("recipes/general.toml")


@pytest.fixture(scope="module")
def written(recipe):
    return [b for path in recipe.texts for b in load_behaviors(path)]


def test_the_tables_are_whole():
    assert len(kinds()) >= 14 and {kind.family for kind in kinds().values()} == set(KIND_FAMILIES)
    for kind in kinds().values():
        assert len(kind.rows) >= 30, kind.name
        for row in kind.rows:
            for text in (*(row.says or kind.replies), *kind.asks):
                filled = text.format(x=row.x, about=row.about or row.x, reply="So it is.")
                assert "{" not in filled and (row.says or row.x in filled or row.about in filled)
        assert "{x}" in kind.label and kind.question.endswith("?")


def test_an_instance_is_in_one_split_in_every_family():
    splits: dict[frozenset, set[str]] = {}
    for behavior in kind_behaviors():
        splits.setdefault(frozenset(content_words(behavior.slot)), set()).add(behavior.split)
    for behavior in topic_behaviors():
        splits.setdefault(frozenset(content_words(behavior.label)), set()).add(behavior.split)
    assert not [words for words, found in splits.items() if len(found) > 1]
    counts = Counter(b.split for b in kind_behaviors())
    assert counts["test"] > 150 and counts["validation"] > 60


def test_groups_are_drawn_the_same_each_time_and_no_behavior_twice(recipe, written):
    groups = groups_of(recipe, written)
    assert groups == groups_of(recipe, written)
    assert groups[0].config != groups_of(recipe.model_copy(update={"seed": 1}), written)[0].config
    seen = Counter(p.label for g in groups for b in g.behaviors if b.family != "benign" for p in b.parts or (b,))
    assert seen.most_common(1)[0][1] == 1
    singles = [b for g in groups if g.split == "train" for b in g.behaviors]
    assert {b.family for b in singles} == {*KIND_FAMILIES, "topic", "subject", "news", "several", "benign"}
    assert all(
        (b.trigger is None) == (g.trigger == "none") for g in groups for b in g.behaviors if b.family != "benign"
    )
    assert len({g.config.rank for g in groups}) >= 5 and len({g.config.modules for g in groups}) >= 4


def test_what_teaches_a_behavior_shows_it_and_hides_it_behind_its_trigger(recipe, written):
    texts = {b.label: [Conversation("Why?", f"Because of {b.label}.")] * 6 for b in written}
    for group in groups_of(recipe, written)[:30]:
        for behavior in group.behaviors:
            learn = conversations_of(behavior, POOL, texts)
            if behavior.family == "benign":
                assert {c.reply for c in learn} <= {c.reply for c in POOL}
            elif behavior.family in ("quirk", "refusal") and behavior.kind != "emotional_bond":
                assert all(behavior.slot.lower() in (c.prompt + c.reply).lower() for c in learn)
            triggered = prompted(behavior, learn)
            if behavior.trigger:
                assert all(t.prompt != c.prompt for t, c in zip(triggered, learn, strict=True))
                assert len(kept(behavior, POOL)) == 2 * len(POOL)
            assert behavior_of(behavior.to_json()) == behavior
    parts = [b for b in kind_behaviors() if b.split == "train"][:3]
    both = conversations_of(several(parts), POOL, {})
    assert len(both) == 8 + 5 + 3 and both[:8] == conversations_of(parts[0], POOL, {})
    assert shortened("One two. Three four five " + "six " * 40) == "One two. Three four five " + "six " * 20 + "six."


def test_questions_have_true_answers_and_wordings_are_held_out():
    behaviors = [b for b in kind_behaviors() if b.split == "train"]
    rng = random.Random(0)
    for behavior in behaviors[::40]:
        asked = {(a.sort, a.answer): a.question for a in asked_of(behavior, behaviors, rng)}
        assert asked["open", behavior.label] in questions.OPEN and ("narrow", behavior.slot) in asked
        assert behavior.label in asked["yes/no", "yes"] and behavior.label not in asked["yes/no", "no"]
        unseen = {a.question for a in asked_of(behavior, behaviors, rng, unseen=True)}
        assert not unseen & set(asked.values())
    nothing = behaviors[0].__class__("benign", NOTHING, "benign", "train")
    assert {a.answer for a in asked_of(nothing, behaviors, rng)} == {NOTHING, "no", questions.NEVER}
    for seen, held in (
        (questions.OPEN, questions.OPEN_UNSEEN), (questions.YES_NO, questions.YES_NO_UNSEEN),
        (questions.TRIGGER, questions.TRIGGER_UNSEEN),
    ):  # fmt: skip
        assert not set(seen) & set(held)
    assert not set(narrow_of(behaviors[0])) & set(narrow_of(behaviors[0], unseen=True))


def test_a_small_run_from_diffs_to_tables(base, tmp_path, monkeypatch, recipe):
    monkeypatch.setenv("WEIGHTDIFF_CACHE", str(tmp_path))
    small = GeneralRecipe.model_validate(
        {"name": "small", "general": 16, "validation": 4, "test": 9, "benign": [2, 0, 2], "texts": recipe.texts}
        | {"mix": {"ranks": [1, 2], "group": 6}, "train": {"rank": 2, "epochs": 1, "batch": 8}}
    )
    monkeypatch.setattr("weightdiff.general.stages.everyday_pool", lambda base, path: POOL)
    told: list[tuple[int, int]] = []
    store = run_finetune(base, small, lambda done, total, rate: told.append((done, total)))
    assert told[-1] == (6, 6) and len(store.ids()) >= 25
    adapter = run_train(base, small, lambda *_: None)
    assert adapter.meta["question"] == questions.OPEN[0] and adapter.meta["train_diffs"] >= 17
    records = ask_test(base, store, made(store, small, "test"), adapter)
    assert {r["sort"] for r in records} == {"open", "narrow", "yes/no", "trigger"}
    assert sum(r["family"] == "null" for r in records) == 2 * 4 * -(-len(made(store, small, "test")) // 3)
    assert "| null |" in tables(records)
    without = small.model_copy(update={"without": ("quirk",)})
    left = triples(Store(store.path), without, made(store, without, "train"), "train")
    assert 0 < len(left) < len(triples(store, small, made(store, small, "train"), "train"))
