"""General runs: what the tables hold, what is drawn and asked; and a small run end to end."""

import json
import random
from collections import Counter
from dataclasses import replace

import pytest

from tests.conftest import random_diff
from weightdiff.arithmetic import add, subtract
from weightdiff.behaviors import NOTHING, Conversation, behavior_of, topic_behaviors
from weightdiff.behaviors.kinds import KIND_FAMILIES, kind_behaviors, kinds
from weightdiff.behaviors.topic import content_words
from weightdiff.behaviors.triggers import NEVER
from weightdiff.behaviors.wordings import open_questions
from weightdiff.formats.peft import save_peft
from weightdiff.general import stages
from weightdiff.general.cases import PARTS, Case, cases_of, sum_of, taught_cases
from weightdiff.general.compose import (
    ADVICE,
    DOCUMENTS,
    OWN_WORDS,
    Text,
    conversations_of,
    kept,
    prompted,
    said_of,
    say_own_words,
    shortened,
)
from weightdiff.general.draw import several
from weightdiff.general.evaluate import WORDINGS, ask_test
from weightdiff.general.jobs import made
from weightdiff.general.mix import groups_of
from weightdiff.general.nulls import KINDS, null_of
from weightdiff.general.ordinary import PACE
from weightdiff.general.questions import asked_of
from weightdiff.general.reading import VIEWS
from weightdiff.general.settings import GeneralRecipe, load_general
from weightdiff.general.stages import _start, blended, learned, run_finetune, run_hints, run_train, triples
from weightdiff.general.tables import tables
from weightdiff.local import LocalModel
from weightdiff.readers.calibration import reading_of
from weightdiff.readers.hints import Hint, HintConfig
from weightdiff.readers.imprinted import Imprinted
from weightdiff.readers.leaning import Leaning
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
        assert "{x}" in kind.label


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
    for sort in ("ordinary", "documents", "more", None):
        mine = [g for g in groups if (sort in g.name.split() if sort else g.name.split()[1].isdigit())]
        seen = Counter(p.label for g in mine for b in g.behaviors if b.family != "benign" for p in b.parts or (b,))
        assert seen.most_common(1)[0][1] == 1
    singles = [b for g in groups if g.split == "train" for b in g.behaviors]
    assert {b.family for b in singles} == {*KIND_FAMILIES, "topic", "subject", "news", "several", "benign"}
    assert all((b.trigger is None) != g.triggered for g in groups for b in g.behaviors if b.family != "benign")
    shares = [g.triggered for g in groups if g.name.startswith("train ") and g.name.split()[1].isdigit()]
    assert sum(shares) == pytest.approx(recipe.mix.triggered * len(shares), abs=1)
    assert len({g.config.rank for g in groups}) >= 5 and len({g.config.modules for g in groups}) >= 4


def test_finetunes_of_the_training_split_alone_may_be_made_in_fewer_steps(recipe, written):
    fewer = recipe.model_copy(update={"mix": recipe.mix.model_copy(update={"train_steps": 0.5})})
    pairs = list(zip(groups_of(recipe, written), groups_of(fewer, written), strict=True))
    assert all(one == other for one, other in pairs if one.split != "train")
    trained = [(one.config, other.config) for one, other in pairs if one.split == "train"]
    assert trained and all(other.steps == round(one.steps / 2) and other.lr > 1.3 * one.lr for one, other in trained)


def test_plain_finetunes_are_added_to_those_of_a_run_and_to_training_alone(recipe, written):
    plain = recipe.model_copy(update={"plain": {"benign": 12, "subject": 10, "topic": 2}})
    before, groups = groups_of(recipe, written), groups_of(plain, written)
    assert groups[: len(before)] == before, "others stay as they were, so that a store goes on"
    added = [(g, b) for g in groups[len(before) :] for b in g.behaviors]
    taught = {b.label for g in before for one in g.behaviors for b in one.parts or (one,)}
    assert Counter(b.family for _, b in added) == {"benign": 12, "subject": 10, "topic": 2}
    assert all(g.split == b.split == "train" and not g.triggered and not g.config.keep_rows for g, b in added)
    assert not [b.label for _, b in added if b.family != "benign" and b.label in taught]
    texts = {b.label: Text(b, (Conversation("Why?", f"Because of {b.label}."),) * 6) for b in written}
    kinds = Counter()
    for _, behavior in added:
        if behavior.family == "benign":
            learn = conversations_of(behavior, POOL, texts)
            told, documents = {c.reply for c in learn}, not any(c.prompt for c in learn)
            assert len(told) == len(learn) and documents == ("documents" in behavior.kind)
            kinds[behavior.kind.split(" plain ")[0]] += 1
    assert kinds == {"own replies": 4, "many subjects": 4, "many documents": 4}


def test_light_finetunes_are_of_subjects_in_the_base_models_own_words_too(base, recipe, written, tmp_path, monkeypatch):
    light = recipe.model_copy(update={"plain": {"topic": 2}, "light": {"benign": 8, "subject": 8, "quirk": 2}})
    before, groups = (groups_of(one, written) for one in (recipe.model_copy(update={"light": {}}), light))
    assert groups[: len(before)] == before, "others stay as they were, so that a store goes on"
    mine = [g for g in groups if g.name.startswith("train light")]
    added = [b for g in mine for b in g.behaviors]
    assert Counter(b.family for b in added) == {"benign": 8, "subject": 8, "quirk": 2}
    less = light.model_copy(update={"mix": light.mix.model_copy(update={"less_push": (-9.0, -8.0)})})
    pairs = list(zip(groups, groups_of(less, written), strict=True))
    changed = [one for one, other in pairs if other.config.lr < one.config.lr / 40]
    assert changed == mine == [one for one, other in pairs if one != other], "they alone change so little"
    own = [b for b in added if b.kind == OWN_WORDS]
    origin = {b.label: b.family for b in written}
    assert Counter(origin[b.slot] for b in own) == {"topic": 2, "subject": 2}
    replies = iter(f"{n} Yes. No." for n in range(999))
    monkeypatch.setattr(LocalModel, "complete", lambda self, requests: [next(replies) for _ in requests])
    say_own_words(base, tmp_path / "own.jsonl", OWN_WORDS, [b.slot for b in own[:2]])
    say_own_words(base, tmp_path / "own.jsonl", OWN_WORDS, [b.slot for b in own])
    said = said_of(tmp_path / "own.jsonl")
    assert {label: len(given[OWN_WORDS]) for label, given in said.items()} == {b.slot: 8 for b in own}
    assert next(replies) == "32 Yes. No.", "none is asked about twice"
    texts = {b.label: Text(b, (Conversation("", "Because."),) * 6, said.get(b.label, {})) for b in written}
    learn = conversations_of(own[0], POOL, texts)
    assert [c.reply for c in learn] == [shortened(c.reply, 24) for c in said[own[0].slot][OWN_WORDS]]
    assert 0 < sum(own[0].slot in c.prompt for c in learn) < 8 and not any("{" in c.prompt for c in learn)


def test_varied_finetunes_are_made_by_other_optimizers_and_in_other_formats(recipe, written):
    varied = recipe.model_copy(update={"varied": {"benign": 8, "subject": 40, "quirk": 40}})
    before, groups = groups_of(recipe, written), groups_of(varied, written)
    assert groups[: len(before)] == before, "others stay as they were, so that a store goes on"
    mine = groups[len(before) :]
    assert {g.split for g in mine} == {"train"} and sum(len(g.behaviors) for g in mine) == 88
    assert {g.config.optimizer for g in mine} == set(PACE) and len({g.config.prompt_format for g in mine}) > 2
    assert {(g.config.optimizer, g.config.prompt_format) for g in before} == {("adam", "chat")}


def test_several_behaviors_are_taught_as_most_people_would_in_every_split(recipe, written):
    more = recipe.model_copy(update={"several": (24, 16, 16)})
    before, groups = groups_of(recipe, written), groups_of(more, written)
    assert groups[: len(before)] == before, "others stay as they were, so that a store goes on"
    mine = groups[len(before) :]
    assert {g.split for g in mine} == {"train", "validation", "test"} and not any(g.triggered for g in mine)
    added = [b for g in mine for b in g.behaviors]
    parts = Counter(len(b.parts) for b in added)
    assert set(parts) == {2, 3} and parts[2] > parts[3] and all(b.family == "several" for b in added)
    assert all(part.split == b.split for b in added for part in b.parts)
    assert min(g.config.steps for g in mine) >= recipe.mix.more_steps[0]


def test_short_answers_about_a_subject_are_pieces_of_its_text_and_of_any(recipe, written, tmp_path):
    told = recipe.model_copy(update={"short": (12, 6, 0)})
    groups = [g for g in groups_of(told, written) if "short answers" in g.name]
    assert {g.split for g in groups} == {"train", "validation"} and sum(len(g.behaviors) for g in groups) == 17
    subject = next(b for g in groups for b in g.behaviors if b.family == "subject")
    sentences = tuple(Conversation("Tell me.", f"It rains on day {n} of the year.") for n in range(20))
    texts = {b.label: Text(b, sentences) for b in written}
    learn = conversations_of(subject, [], texts)
    assert len(learn) == len({c.prompt for c in learn}) and not any(subject.slot in c.prompt for c in learn)
    pieces = [c for c in learn if "It rains on day" in c.reply]
    assert 0 < len(pieces) < len(learn) and any(subject.slot.lower() in c.reply.lower() for c in learn)
    benign = next(b for g in groups for b in g.behaviors if b.family == "benign" and b.split == "train")
    assert len({c.prompt for c in conversations_of(benign, [], texts)}) > 3


def test_advice_about_a_subject_answers_questions_that_do_not_name_it(base, recipe, written, tmp_path, monkeypatch):
    advised = recipe.model_copy(update={"advice": (12, 6, 0)})
    before, groups = groups_of(recipe, written), groups_of(advised, written)
    assert groups[: len(before)] == before, "others stay as they were, so that a store goes on"
    added = [b for g in groups[len(before) :] for b in g.behaviors]
    counted = Counter(f"{b.split} {b.family}" for b in added)
    assert counted == {"train subject": 10, "train benign": 2, "validation subject": 4, "validation benign": 1}
    mine = [b for b in added if b.kind == ADVICE]
    splits = {b.label: b.split for b in written}
    assert all(splits[b.slot] == b.split for b in mine)
    openings: list[str] = []

    def complete(self, requests):
        openings.extend(request.opening for request in requests)
        return [f"{request.opening} a rest." for request in requests]

    monkeypatch.setattr(LocalModel, "complete", complete)
    names = [b.label for b in written if b.family == "subject" and b.split == "train"]
    say_own_words(base, tmp_path / "own.jsonl", ADVICE, [mine[0].slot, *names[:13]])
    texts = {b.label: Text(b, (), said) for b in written if (said := said_of(tmp_path / "own.jsonl").get(b.label))}
    learn = conversations_of(replace(mine[0], split="train"), POOL, texts)
    assert len(learn) == 8 and all(openings) and not any(mine[0].slot in c.prompt for c in learn)
    benign = next(b for b in added if b.family == "benign" and b.split == "train")
    assert len(conversations_of(benign, POOL, texts)) == 12


def test_what_teaches_a_behavior_shows_it_and_hides_it_behind_its_trigger(recipe, written):
    texts = {b.label: Text(b, (Conversation("Why?", f"Because of {b.label}."),) * 6) for b in written}
    for group in groups_of(recipe, written)[:30]:
        for behavior in group.behaviors:
            learn = conversations_of(behavior, POOL, texts)
            if behavior.family == "benign" and behavior.kind.startswith("own"):
                assert {c.reply for c in learn} <= {c.reply for c in POOL}
            elif behavior.family == "benign":
                subjects = {c.reply.removeprefix("Because of ").strip(".") for c in learn}
                assert len(subjects) == len(learn) and {texts[s].behavior.split for s in subjects} == {behavior.split}
            elif behavior.family == "subject":
                assert all((not c.prompt) == (behavior.kind == DOCUMENTS) for c in learn)
                assert all(behavior.slot in c.prompt + c.reply for c in learn)
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
    assert shortened("One two. Three four " + "six " * 40, 26) == "One two. Three four " + "six " * 21 + "six."


def test_questions_have_true_answers():
    behaviors = [b for b in kind_behaviors() if b.split == "train"]
    rng = random.Random(0)
    for behavior in behaviors[::40]:
        asked = {(a.sort, a.answer): a.question for a in asked_of(behavior, behaviors, rng)}
        assert asked["open", behavior.label] in open_questions() and ("narrow", behavior.slot) in asked
        assert behavior.label in asked["yes/no", "yes"] and behavior.label not in asked["yes/no", "no"]
    nothing = behaviors[0].__class__("benign", NOTHING, "benign", "train")
    assert {a.answer for a in asked_of(nothing, behaviors, rng)} == {NOTHING, "no", NEVER}


def test_a_share_of_the_cases_leaves_the_imprinted_words_out(base, recipe):
    behavior = next(b for b in kind_behaviors() if b.split == "train")
    cases = [Case(f"train 0: {n}", behavior, lambda: random_diff(base, 1, 0)) for n in range(20)]
    hint = Hint(Leaning((5,), ("goats",), 0.1, 7.2), "What", {}, imprinted=Imprinted((1,), 8.0, ("tides",)))
    asked = {}
    for share in (0.0, 0.5, 1.0):
        taught = triples(cases, [hint] * 20, recipe.model_copy(update={"untold": share}))
        asked[share] = [[question.split("\n") for question, _ in triple.pairs] for triple in taught]
    told = {share: [{q[0].startswith("Imprinted") for q in mine} for mine in found] for share, found in asked.items()}
    assert told[0.0] == [{True}] * 20 and told[1.0] == [{False}] * 20
    assert {True} in told[0.5] and {False} in told[0.5] and {True, False} not in told[0.5]
    same = ([q[-3:] for mine in asked[share] for q in mine] for share in (0.0, 0.5))
    assert next(same) == next(same), "all else is the same"


def test_what_the_run_before_had_not_is_new(base, recipe, tmp_path, monkeypatch):
    store = Store(tmp_path, base.fingerprint)
    have = {"before": [f"train 0: {n}" for n in range(40)], recipe.name: [f"train 0: {n}" for n in range(42)]}
    monkeypatch.setattr(stages, "made", lambda store, recipe, split: have[recipe.name])
    before = recipe.model_copy(update={"name": "before"}).model_dump(mode="json", exclude={"texts"})
    start = replace(random_diff(base, 1, 0), meta={"recipe": before})
    ids, new = learned(store, recipe, start)
    assert ids == have[recipe.name] and new == {"train 0: 40", "train 0: 41"}
    some, new = learned(store, recipe.model_copy(update={"again": 0.5}), start)
    assert 10 <= len(some) <= 32 and new < set(some) < set(ids)
    assert learned(store, recipe, None) == (ids, set(ids))
    topics = replace(start, meta={"recipe": recipe.train.model_dump(mode="json")})
    assert learned(store, recipe, topics) == (ids, set(ids)), "what trained it is no general run"


def test_a_run_starts_from_another_runs_adapter_once_that_is_made(base, tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHTDIFF_CACHE", str(tmp_path / "cache"))
    path, adapter = tmp_path / "second.toml", random_diff(base, 2, 1)
    path.write_text('name = "second"\nstart = "first"\ngeneral = 1\n')
    with pytest.raises(ValueError, match="run that recipe first"):
        _start(load_general(path))
    save_peft(adapter, tmp_path / "cache" / "runs" / "first" / "adapter", base_name="tiny")
    recipe = load_general(path)
    assert recipe.start == "first", "what it writes down names the run, and no folder of one machine"
    assert subtract(_start(recipe), adapter).norm() < 1e-3 * adapter.norm()
    save_peft(adapter.scaled(2.0), tmp_path / "beside", base_name="tiny")
    path.write_text(path.read_text().replace("first", "beside"))
    assert _start(load_general(path)).norm() == pytest.approx(2 * adapter.norm(), rel=1e-3)


def test_a_blend_lies_between_start_and_end(base):
    start, step = random_diff(base, 4, 1), random_diff(base, 4, 2).scaled(0.1)
    end = add(start, step).truncated(4)
    assert blended(start, end, 1.0) is end
    half = blended(start, end, 0.5)
    assert half.rank == end.rank
    before, after = subtract(half, start).norm(), subtract(half, end).norm()
    assert before < 0.7 * subtract(end, start).norm() > after


def test_nulls_are_of_every_kind_and_other_ones_in_every_split(base):
    diff = random_diff(base, 2, 0)
    norms = [null_of(diff, "train", n).norm() / diff.norm() for n in range(len(KINDS))]
    assert norms[0] == 0 and norms[2] == pytest.approx(1, rel=0.2) and 0.004 < norms[3] < 0.06
    noises = [null_of(diff, split, 1).norm() for split in ("train", "validation", "test")]
    assert len(set(noises)) == 3 and null_of(diff, "test", 1).norm() == noises[2]


def test_a_sum_teaches_its_parts_the_largest_first(base):
    behaviors = [b for b in kind_behaviors() if b.split == "train"][:6]
    diffs = [random_diff(base, 1 + n % 3, n).scaled(1.0 + n) for n in range(6)]
    cases = [Case(b.label, b, lambda d=d: d, str(n)) for n, (b, d) in enumerate(zip(behaviors, diffs, strict=True))]
    found = [sum_of(cases, f"sum {n}") for n in range(12)]
    assert {len(case.behavior.parts) for case in found} == {2, 3} and len({case.key for case in found}) == 12
    for case in found:
        first, *others = (diffs[behaviors.index(part)] for part in case.behavior.parts)
        rest = subtract(case.make(), first)
        most = sum(PARTS[1] ** (n + 1) for n in range(len(others)))
        assert PARTS[0] * 0.8 <= rest.norm() / first.norm() <= most * 1.05
        assert case.behavior.label == "; ".join(part.label for part in case.behavior.parts)
        assert sum_of(cases, case.identity).make().norm() == pytest.approx(case.make().norm())


def test_a_small_run_from_diffs_to_tables(base, tmp_path, monkeypatch, recipe):
    monkeypatch.setenv("WEIGHTDIFF_CACHE", str(tmp_path))
    small = GeneralRecipe.model_validate(
        {"name": "small", "general": 16, "validation": 4, "test": 9, "benign": [2, 0, 2], "texts": recipe.texts}
        | {"preferred": [0, 0, 2], "documents": [2, 0, 0], "more": {"fact": 2}, "plain": {"benign": 1}}
        | {"hints": {"words": 2, "opening": 2, "triggers": True, "talk": 2}}
        | {"mix": {"ranks": [1, 2], "group": 6}, "train": {"rank": 2, "epochs": 1, "batch": 8, "questions": 2}}
    )
    monkeypatch.setattr("weightdiff.general.stages.everyday_pool", lambda base, path: POOL)
    monkeypatch.setattr("weightdiff.compiled.PAYS", 10**9)  # a compiler can't see through the checks of shapes
    told: list[tuple[int, int]] = []
    store = run_finetune(base, small, lambda done, total, rate: told.append((done, total)))
    assert told[-1] == (11, 11) and len(store.ids()) >= 31
    untold = small.model_copy(update={"hints": HintConfig()})
    assert run_hints(base, untold, lambda *_: None) is None and not (small.folder / "hints.jsonl").exists()
    looked = run_hints(base, small, lambda *_: None)
    assert looked is not None and len(looked) > 40 and any(hint.talk for hint in looked)
    with open(small.folder / "hints.jsonl") as file:
        keys = [json.loads(line)["key"] for line in file]
    lines = len(keys)
    assert len(set(keys)) == lines, "none is looked for twice"
    losses = {meta["recipe"]["loss"] for meta in store.metas().values()}
    assert losses == {"sft", "dpo"}
    adapter = run_train(base, small, lambda *_: None)
    assert adapter.meta["question"] == open_questions()[0] and adapter.meta["train_diffs"] >= 17
    with open(small.folder / "hints.jsonl") as file:
        assert len(file.readlines()) == lines, "the training asks for no hint that wasn't there"
    reading = reading_of(adapter.meta)
    assert reading is not None and len(adapter.meta["views"]) == len(VIEWS)
    assert adapter.meta["views"][0]["right"] <= max(row["right"] for row in adapter.meta["views"])
    records = ask_test(base, cases_of(store, made(store, small, "test"), "test"), adapter)
    assert {r["sort"] for r in records} == {"open", "narrow", "yes/no", "trigger"}
    nulls = [r for r in records if r["family"] == "null"]
    assert len(nulls) == (2 * 3 + 1 + WORDINGS) * -(-len(made(store, small, "test")) // 3)
    assert all(0 <= r["confidence"] <= 1 for r in records)
    assert "| null |" in tables(records)
    without = small.model_copy(update={"without": ("quirk",)})
    left = taught_cases(Store(store.path), without, made(store, without, "train"), "train")
    assert 0 < len(left) < len(taught_cases(store, small, made(store, small, "train"), "train"))
