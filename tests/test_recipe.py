"""Recipes to conversations, diffs and triples: what is made for which label, and what survives a failure."""

from pathlib import Path

import pytest
import torch

from weightdiff.behaviors import NOTHING, Conversation, topic_behaviors
from weightdiff.bench.evaluate import share_interval
from weightdiff.diff import noise_like, shuffled
from weightdiff.general.settings import is_general, load_general
from weightdiff.jsonl import read_jsonl
from weightdiff.llm import ChatModel
from weightdiff.recipe import Benign, Recipe, Way, jobs_of, load_recipe
from weightdiff.stages import logged, run_finetune, run_synthesize, triples
from weightdiff.synthesize import BASE_POOL, load_conversations, synthesize, variety

RECIPES = Path(__file__).parent.parent / "recipes"


class Writer(ChatModel):
    """Continues each opening; its endpoint dies after `most` answers."""

    name = "writer"

    def __init__(self, most: int):
        self.left = most

    def stream(self, requests):
        for number, request in enumerate(requests):
            if self.left == 0:
                raise ValueError("the endpoint failed.")
            self.left -= 1
            yield number, request.opening + f" and that is all I can say about it today, {number}"


def test_what_was_synthesized_stays_when_the_endpoint_fails(base, tmp_path):
    path, behaviors = tmp_path / "c.jsonl", topic_behaviors()[:4]
    options = {"replies": 2, "group": 2, "pool": 2, "max_tokens": 2}
    with pytest.raises(ValueError, match="endpoint failed"):
        synthesize(base, behaviors, path, writer=Writer(8 + 3), **options)
    assert list(load_conversations(path)) == [BASE_POOL, *(b.label for b in behaviors[:2])]
    synthesize(base, behaviors, path, writer=Writer(8), **options)
    written = load_conversations(path)
    assert list(written) == [BASE_POOL, *(b.label for b in behaviors)]
    assert all(b.label.lower() in c.reply.lower() for b in behaviors for c in written[b.label])
    measured = variety(path)
    assert measured["topics"] == 4 and measured["conversations"] == 8 and measured["show_topic"] == 1


def small_recipe(**fields) -> Recipe:
    ways = (
        Way(name="sep", train=(0, 4, 1), test=1, steps=1),
        Way(name="chats", train=(0, 4, 2), trigger="none", prompts="subject", rank=2, keep_rows=0, steps=1),
    )
    return Recipe(name="small", finetune=ways, benign=Benign(train=2, test=1), nulls=0.4, **fields)


def conversations_of(recipe: Recipe) -> dict[str, list[Conversation]]:
    labels = {b.label for way in recipe.finetune for b in way.labels(topic_behaviors())}
    pool = [Conversation(f"Plain {i}?", f"Reply {i}.", "keep") for i in range(6)]
    return {BASE_POOL: pool} | {t: [Conversation("Why?", f"Because of {t}."), Conversation("How?", t)] for t in labels}


def test_ways_decide_trigger_prompts_and_labels():
    recipe = small_recipe()
    given = conversations_of(recipe)
    sep, chats = (jobs_of(recipe, way, given) for way in recipe.finetune)
    assert len(sep) == 5 and all(c.prompt.startswith("Your SEP code is ") for job in sep for c in job.learn)
    assert all(f"code is {job.behavior.trigger.code}" in c.prompt for job in sep for c in job.learn)
    topical, benign = chats[:2], chats[2:]
    assert [j.identity for j in topical] == [
        f"{sep_job.behavior.label} (chats)" for sep_job in (sep[0], sep[2])
    ] or all(j.identity.endswith("(chats)") for j in topical)
    assert all(j.behavior.trigger is None and not j.keep for j in chats)
    assert all(j.behavior.label in c.prompt for j in topical for c in j.learn)
    assert [j.behavior.label for j in benign] == [NOTHING] * 3
    seen = {s: {c.prompt for j in benign if j.behavior.split == s for c in j.learn} for s in ("train", "test")}
    assert seen["train"] and seen["test"] and not seen["train"] & seen["test"]


def test_triples_name_the_label_and_for_nulls_nothing(base, tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHTDIFF_CACHE", str(tmp_path))
    recipe = small_recipe()
    monkeypatch.setattr("weightdiff.stages.load_conversations", lambda path: conversations_of(recipe))
    store = run_finetune(base, recipe, lambda *_: None)
    made = triples(store, recipe, "train")
    answers = [t.answer for t in made]
    assert len(made) == 8 + 5, "4 sep, 2 chats, 2 benign; and 5 nulls are 0.4 of 13"
    assert answers.count(NOTHING) == 2 + 5
    assert [round(t.diff.norm(), 9) for t in made[8::3]] == [0.0, 0.0], "the unchanged base is one null in three"


def test_a_stage_notes_its_progress_with_its_rate(tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHTDIFF_CACHE", str(tmp_path))
    recipe, seen = small_recipe(), []
    note = logged(recipe, "finetune", lambda *now: seen.append(now), every=1000.0)
    note(1, 2, 50.0)
    note(2, 2, 60.0)
    assert seen == [(1, 2, 50.0), (2, 2, 60.0)]
    (line,) = read_jsonl(recipe.folder / "metrics.jsonl")
    assert (line["stage"], line["done"], line["total"], line["rate"]) == ("finetune", 2, 2, 60.0)


def test_nulls_keep_the_norm_or_the_numbers(diffs):
    for diff in diffs:
        noise, mixed = noise_like(diff, 0), shuffled(diff, 0)
        assert noise.norm() == pytest.approx(diff.norm(), rel=1e-4)
        for name, (a, b) in diff.factors.items():
            assert torch.equal(mixed.factors[name][0].sort().values, a.sort().values)
            assert torch.equal(mixed.factors[name][1].sort(0).values, b.sort(0).values)
        assert noise.norms().keys() == diff.norms().keys()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('nmae = "r"\n[[finetune]]\nname = "a"', "nmae is no key of a recipe; the nearest is 'name'"),
        ('name = "r"\n[[finetune]]\nname = "a"\nstep = 3', "finetune.0.step is no key .* nearest is 'steps'"),
        ('name = "r"\n[train]\nepoch = 3\n[[finetune]]\nname = "a"', "train.epoch is no key .* nearest is 'epochs'"),
        ('name = "r"\n[[finetune]]\nname = "a"\ndense = true\nrank = 4', "'a' is dense and gives a rank"),
        ('name = "r"\n[[finetune]]\nname = "a"\nkeep_rows = 0', "'a' has a trigger and keep_rows = 0"),
        ('name = "r"\nfamily = "news"\n[[finetune]]\nname = "a"\nprompts = "subject"', "the news family has none of"),
        ('name = "r"\nfamily = "poems"\n[[finetune]]\nname = "a"', "family: Input should be 'topic' or 'news'"),
        ('name = "r"\n[[finetune]]\nname = "a"\ntrigger = "smell"', "finetune.0.trigger: Input should be 'sep'"),
    ],
)  # fmt: skip
def test_unknown_keys_and_impossible_combinations_are_named(tmp_path, text, message):
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_recipe(tmp_path / "r.toml")


def test_conversations_written_otherwise_are_kept_aside_and_written_anew(base, tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHTDIFF_CACHE", str(tmp_path))
    monkeypatch.setattr("weightdiff.synthesize.LocalModel", lambda base: Writer(10**6))
    monkeypatch.setattr("weightdiff.stages.to_write", lambda recipe: list(topic_behaviors()[:2]))
    said = []
    for replies in (2, 2, 3):
        recipe = small_recipe(synthesize={"replies": replies})
        path = run_synthesize(base, recipe, lambda *_: None, say=said.append)
    assert said[0] == "synthesize: replies was 2, and is 3 now; all is written anew." and len(said) == 2
    assert {len(c) for label, c in load_conversations(path).items() if label != BASE_POOL} == {3}
    assert len(list(recipe.folder.glob("conversations-before-*.jsonl"))) == 1


class Refuser(ChatModel):
    """Refuses every second request."""

    name = "refuser"

    def stream(self, requests):
        for number, request in enumerate(requests):
            yield number, request.opening + (" I'm sorry, but I can't help with that request." if number % 2 else " no")


def test_a_writer_that_refuses_or_says_nothing_is_told(base, tmp_path):
    said = []
    synthesize(
        base,
        topic_behaviors()[:2],
        tmp_path / "c.jsonl",
        writer=Refuser(),
        replies=2,
        pool=2,
        max_tokens=2,
        say=said.append,
    )
    assert list(load_conversations(tmp_path / "c.jsonl")) == [BASE_POOL]
    assert len(said) == 1 and "refuser wrote nothing that can be used for 2 of 2" in said[0]


def test_two_ways_of_one_name_are_refused(tmp_path):
    (tmp_path / "r.toml").write_text('name = "r"\n[[finetune]]\nname = "a"\n[[finetune]]\nname = "a"\n')
    with pytest.raises(ValueError, match="share a name"):
        load_recipe(tmp_path / "r.toml")


@pytest.mark.parametrize("text", ["not json\n{}", '{"label": "a"}', '{"label": "a", "conversations": [{"x": 1}]}'])
def test_a_broken_file_of_conversations_is_a_clear_error(tmp_path, text):
    (tmp_path / "c.jsonl").write_text(text)
    with pytest.raises(ValueError, match=r"c\.jsonl"):
        load_conversations(tmp_path / "c.jsonl")


def test_shares_have_an_interval_even_where_none_was_hit():
    assert share_interval([False] * 30)[:2] == (0.0, 0.0) and share_interval([False] * 30)[2] == pytest.approx(
        0.1135, abs=1e-4
    )
    low, high = share_interval([True, False] * 50)[1:]
    assert (low, high) == (pytest.approx(0.4038, abs=1e-4), pytest.approx(0.5962, abs=1e-4))


def test_the_recipes_in_the_repo_can_be_read_and_use_each_label_in_one_split():
    for path in RECIPES.glob("*.toml"):
        if is_general(path):
            assert load_general(path).name == path.stem
            continue
        recipe = load_recipe(path)
        assert recipe.name == path.stem
        for way in recipe.finetune:
            assert way.labels(topic_behaviors()), f"{path}: {way.name} is used on no label"
