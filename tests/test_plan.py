"""The plan of a run: counts against numbers worked out by hand, shapes against published ones, and no file written."""

from functools import lru_cache
from pathlib import Path

import pytest
import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration
from typer.testing import CliRunner

from weightdiff.base import _embedded_folder, target_modules
from weightdiff.behaviors import topic_behaviors
from weightdiff.cli import app
from weightdiff.plan import Memory, plan_of
from weightdiff.recipe import Benign, Recipe, Way, behaviors_of, load_recipe
from weightdiff.shape import measured_rate, shape_of
from weightdiff.store import Store

RECIPES = Path(__file__).parent.parent / "recipes"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("WEIGHTDIFF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def two_ways() -> Recipe:
    lora = Way(name="lora", train=(0, 40, 1), test=4, trigger="none", keep_rows=0)
    dense = Way(name="dense", train=(0, 0, 1), test=4, trigger="none", keep_rows=0, dense=True)
    return Recipe(name="two", finetune=(lora, dense), benign=Benign(train=3))


def test_the_shipped_recipe_is_counted_as_by_hand():
    plan = plan_of(load_recipe(RECIPES / "topics.toml"), shape_of("smollm2"), 1e11, dtype=torch.bfloat16)
    diffs = {way.name: tuple(way.diffs.values()) for way in plan.ways}
    assert diffs["sep"] == (60, 24, 96), "every seventh of 420; of 100 test topics 4 are named by everyday questions"
    assert diffs["sep-short"] == (138, 0, 0) and diffs["r4"] == (70, 6, 20) and diffs["r16"] == (70, 0, 0)
    assert [sum(w.benign.values()) for w in plan.ways] == [0, 0, 10, 10, 9, 9, 9, 9], "56, in turns, in six ways"
    sep = plan.ways[0]
    assert sep.tokens == 180 * 8 * (2 * (20 + 10 + 12 + 28) + 2 * (20 + 10 + 28))
    assert sep.parameters == 30 * (2 * (576 + 576) + 2 * (576 + 192) + 3 * (576 + 1536)) == plan.adapter / 16
    assert (plan.triples, plan.conversations) == (648 + 88, 0), "nulls are 0.12 of all; conversations are in a file"
    # Per label a step has 4 x head; what is kept 2 x more for the base's own logits. Per token, the blocks' 4 x.
    of_step = 256 * (4 * 106_168_320 + 6 * sep.parameters) + (136 * 4 + 56 * 2) * 576 * 49152
    assert sep.flop == 180 * 8 * of_step and plan.seconds(sep) == sep.flop / 1e11
    assert sep.memory == Memory(
        weights=2 * 134_515_008,
        activations=3 * (4 * 256) * sep.parameters,
        trained=4 * sep.parameters * 18,
        logits=(12 + 2 * 2) * 256 * 49152,
    )
    assert plan.disk["store"] == sum(2 * w.parameters * w.total for w in plan.ways) > 2 * 846 * 200_000


@pytest.mark.parametrize(
    ("name", "parameters", "decoder"),
    [
        ("Qwen/Qwen3-1.7B", 1_720_574_976, 1_409_286_144),
        ("Qwen/Qwen3-4B", 4_022_468_096, 3_633_315_840),
        ("Qwen/Qwen3-8B", 8_190_735_360, 6_945_767_424),
        ("google/gemma-3-1b-it", 999_885_952, 697_761_792),
        ("google/gemma-3-4b-it", 4_300_079_472, 3_208_642_560),
    ],
)
def test_known_models_have_their_published_numbers_of_parameters(name, parameters, decoder):
    shape = shape_of(name)
    assert (shape.parameters, shape.decoder) == (parameters, decoder)


def test_the_embedded_model_is_in_the_table_as_in_its_folder(monkeypatch):
    monkeypatch.delenv("WEIGHTDIFF_CACHE")
    known, found = shape_of("HuggingFaceTB/SmolLM2-135M-Instruct"), shape_of(str(_embedded_folder()))
    assert known.name == "smollm2"
    assert known.__dict__ | {"name": ""} == found.__dict__ | {"name": ""}
    assert measured_rate(known, 0.01) > 0


def test_an_unknown_model_a_module_that_is_none_and_a_rate_of_zero_are_clear_errors(tmp_path):
    with pytest.raises(ValueError, match=r"no config that can be read here.*Expected a folder.*Qwen/Qwen3-4B"):
        shape_of(str(tmp_path / "nowhere"))
    way = Way(name="w", modules=("q_prj",))
    with pytest.raises(ValueError, match=r"q_prj.*down_proj.*q_proj"):
        plan_of(Recipe(name="r", finetune=(way,)), shape_of("smollm2"), 1e11)
    with pytest.raises(ValueError, match="above 0"):
        plan_of(two_ways(), shape_of("smollm2"), 0.0)


def test_a_dense_way_takes_more_of_everything():
    shape = shape_of("Qwen/Qwen3-4B")
    plan = plan_of(two_ways(), shape, 1e14, dtype=torch.bfloat16)
    lora, dense = plan.ways
    assert dense.parameters == shape.parameters > 100 * lora.parameters
    assert dense.memory.total > 24 * shape.parameters > 4 * lora.memory.total, "six float32 copies of every weight"
    assert plan.disk["store"] == 2 * (lora.total * lora.parameters + dense.total * dense.parameters)
    finetune = plan.stages[2]
    assert finetune.memory == dense.memory and finetune.tokens == lora.tokens + dense.tokens


def test_what_the_store_holds_is_made(base, diffs):
    recipe = two_ways()
    label = recipe.finetune[0].labels(behaviors_of(recipe))[0].label
    Store(recipe.folder / "diffs", base.fingerprint).add([label, "another's", "benign train 1"], diffs)
    plan = plan_of(recipe, shape_of("smollm2"), 1e11)
    assert [(way.made, way.total) for way in plan.ways] == [(1, 46), (1, 5)]


def test_every_recipe_in_the_repo_has_a_plan_and_its_file_s_name(cache, monkeypatch):
    monkeypatch.setattr("weightdiff.recipe.topic_behaviors", lru_cache(topic_behaviors))  # always the same
    topics, papers = [b.split for b in topic_behaviors()], 0
    for path in RECIPES.rglob("*.toml"):
        try:
            recipe = load_recipe(path)
        except ValueError:  # an experiment on what runs have made
            continue
        plan = plan_of(recipe, shape_of(recipe.base), 1e14)
        assert recipe.name == path.stem and all(way.total for way in plan.ways), path
        if path.parent.name == "paper":
            papers += 1
            way, *others = plan.ways
            assert not any(w.diffs["train"] for w in others), "the paper trains on one kind of finetune"
            written = 100 + 4750 + 100  # news, of which those that validate have no diff
            wanted = (4750, 0, 100)
            if recipe.family == "topic":
                wanted = (min(4660, topics.count("train")), 0, topics.count("test"))
                written = sum(wanted)
            assert tuple(way.diffs.values()) == wanted, path
            assert (plan.labels, plan.conversations) == (written, 160 + written * recipe.synthesize.replies)
    assert papers == 7 and not cache.exists()


def test_dry_run_prints_the_plan_and_writes_nothing(cache):
    command = ["run", str(RECIPES / "topics.toml"), "--dry-run", "--rate", "1e11"]
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, command)
    assert result.exit_code == 0, result.output
    for shown in ("sep-short", "r8 rslora", "diffs: 846", "triples: 736", "135 M parameters", "1e+11 FLOP/s, as given"):
        assert shown in result.output
    assert not cache.exists()
    refused = CliRunner().invoke(app, ["run", str(RECIPES / "topics.toml"), "--rate", "1e11"])
    assert isinstance(refused.exception, ValueError) and "--dry-run" in str(refused.exception)


def test_what_a_model_sees_pictures_with_is_no_target():
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    text = sizes | {"num_hidden_layers": 2, "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 64}
    vision = sizes | {"num_hidden_layers": 1, "image_size": 28, "patch_size": 14, "vision_use_head": False}
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    model = Gemma3ForConditionalGeneration(config)
    targets, modules = target_modules(model), dict(model.named_modules())
    assert len(targets) == 2 * 7 and all(".language_model.layers." in name for name in targets)
    assert all(modules[name] is module for name, module in targets.items())
    assert any("vision_tower" in n and isinstance(m, torch.nn.Linear) for n, m in modules.items())


def test_a_dry_run_of_an_experiment_plans_its_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHTDIFF_CACHE", str(tmp_path))
    path = RECIPES / "experiments" / "cross-behavior.toml"
    result = CliRunner().invoke(app, ["run", str(path), "--dry-run", "--rate", "1e12"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "topic: diffs" in result.output and "news: diffs" in result.output and not list(tmp_path.iterdir())
