"""Arithmetic on diffs against dense arithmetic, PEFT itself, and the errors for diffs that don't fit."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from tests.conftest import random_diff
from weightdiff.bank import Layer, lay_over
from weightdiff.diff import WeightDiff, noise_like, stack
from weightdiff.formats.peft import load_peft, save_peft
from weightdiff.store import Store

IDS = torch.randint(0, 1000, (2, 7), generator=torch.Generator().manual_seed(1))


@settings(max_examples=25, deadline=None)
@given(rank=st.integers(1, 5), inn=st.integers(1, 9), out=st.integers(1, 9), seed=st.integers(0, 99))
def test_norm_is_the_dense_norm(rank, inn, out, seed):
    g = torch.Generator().manual_seed(seed)
    diff = WeightDiff({"m": (torch.randn(rank, inn, generator=g), torch.randn(out, rank, generator=g))})
    assert diff.norm() == pytest.approx(float(diff.to_dense("m").norm()), rel=1e-4, abs=1e-5)


def test_noise_has_the_same_norm_per_module_and_another_direction(base):
    diff = random_diff(base, 2, 0)
    noise = noise_like(diff, seed=3)
    assert noise.norms() == pytest.approx(diff.norms(), rel=1e-4)
    name = next(iter(diff.factors))
    cosine = torch.cosine_similarity(diff.to_dense(name).flatten(), noise.to_dense(name).flatten(), dim=0)
    assert abs(float(cosine)) < 0.3
    both = replace(diff, dense={"model.norm.weight": torch.full((32,), 2.0)})
    noise = noise_like(both, seed=3)
    assert noise.norms() == pytest.approx(both.norms(), rel=1e-4) and noise.dense["model.norm.weight"].std() > 0.5


def test_peft_loads_what_we_save(base, tmp_path):
    import copy

    diff = random_diff(base, 2, 0)
    save_peft(diff, tmp_path / "d", base_name="tiny")
    peft_model = PeftModel.from_pretrained(copy.deepcopy(base.model), str(tmp_path / "d"))
    with lay_over(base.targets, [Layer(stack([load_peft(tmp_path / "d")], base.shapes))]):
        ours = base.model(IDS).logits
    assert torch.allclose(peft_model(IDS).logits, ours, atol=1e-5)
    assert load_peft(tmp_path / "d").base == base.fingerprint


@pytest.mark.parametrize("rslora", [False, True])
def test_we_load_what_peft_saves(base, tmp_path, rslora):
    import copy

    config = LoraConfig(
        r=4, lora_alpha=12, target_modules=["q_proj", "down_proj"], use_rslora=rslora, init_lora_weights=False,
        rank_pattern={"layers.1.self_attn.q_proj": 2}, alpha_pattern={"layers.0.mlp.down_proj": 3},
    )  # fmt: skip
    peft_model = get_peft_model(copy.deepcopy(base.model), config)
    peft_model.save_pretrained(tmp_path)
    with lay_over(base.targets, [Layer(stack([load_peft(tmp_path)], base.shapes))]):
        ours = base.model(IDS).logits
    assert torch.allclose(peft_model(IDS).logits, ours, atol=1e-5)


def test_misfit_names_module_and_both_shapes(base):
    name = next(iter(base.targets))
    bad = WeightDiff({name: (torch.zeros(2, 7), torch.zeros(32, 2))})
    with pytest.raises(ValueError, match=rf"{name}.*\[2, 7\].*\[32, 32\]"):
        stack([bad], base.shapes)
    with pytest.raises(ValueError, match="no such linear layer"):
        stack([WeightDiff({"other.0.q": bad.factors[name]})], base.shapes)


def break_config(folder):
    (folder / "adapter_config.json").write_text("{")


def break_weights(folder):
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:200])


def break_kind(folder):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"use_dora": True}))


def break_start(folder):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"init_lora_weights": "pissa_niter_4"}))


def break_alpha(folder):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"lora_alpha": "much"}))


def break_keys(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(
        tensors | {"base_model.model.embed.lora_embedding_A": torch.zeros(1, 3)}, folder / "adapter_model.safetensors"
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_config, "not readable JSON"),
        (break_weights, "truncated"),
        (break_kind, "use_dora is set, and there is no lora_magnitude_vector"),
        (break_start, "changes the base weights"),
        (break_alpha, "can't be understood"),
        (break_keys, "has lora_A and no lora_B"),
    ],
)
def test_broken_folder_is_a_clear_error(base, tmp_path, damage, message):
    save_peft(random_diff(base, 1, 0), tmp_path, base_name="tiny")
    damage(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_peft(tmp_path)


def test_nan_and_missing_are_clear_errors(base, tmp_path):
    diff = random_diff(base, 1, 0)
    name = next(iter(diff.factors))
    diff.factors[name][0][0, 0] = float("nan")
    save_peft(diff, tmp_path, base_name="tiny")
    with pytest.raises(ValueError, match=f"{name}.lora_A.weight' holds NaN"):
        load_peft(tmp_path)
    with pytest.raises(ValueError, match="no such folder"):
        load_peft(tmp_path / "nowhere")


def test_store_gives_back_what_it_took_and_ignores_half_written_shards(base, tmp_path):
    kept = [random_diff(base, 2, seed) for seed in range(3)]
    store = Store(tmp_path / "s", base.fingerprint)
    store.add(["a", "b", "c"], kept, dtype=torch.float32)
    (tmp_path / "s" / "shard-0.safetensors.1.tmp").write_bytes(b"half")
    again = Store(tmp_path / "s")
    assert list(again.metas()) == ["a", "b", "c"]
    (loaded,) = again.load(["b"])
    for name, (a, b) in kept[1].factors.items():
        assert torch.equal(a, loaded.factors[name][0]) and torch.equal(b, loaded.factors[name][1])
    with pytest.raises(ValueError, match="has no diff 'z'"):
        again.load(["z"])
    with pytest.raises(ValueError, match="was given"):
        Store(tmp_path / "s", "another")
    with pytest.raises(ValueError, match="no store"):
        Store(tmp_path / "nowhere")


def test_a_full_disk_is_a_clear_error_and_the_store_stays_as_it_was(base, tmp_path, monkeypatch):
    store = Store(tmp_path, base.fingerprint)
    store.add(["a"], [random_diff(base, 1, 0)])

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("weightdiff.store.save_file", full)
    with pytest.raises(ValueError, match=r"cannot write to the store .*No space left"):
        store.add(["b"], [random_diff(base, 1, 1)])
    assert list(Store(tmp_path).metas()) == ["a"] and len(list(tmp_path.glob("*.tmp"))) == 0


def test_a_stores_diffs_are_read_one_by_one_and_a_missing_shard_is_named(base, tmp_path):
    store = Store(tmp_path, base.fingerprint)
    for seed, name in enumerate(("a", "b")):
        store.add([name], [random_diff(base, 1, seed)])
    diffs = store.diffs()
    assert len(diffs) == 2 and diffs[1].meta["label"] == "label 1" and [d.rank for d in diffs[:1]] == [1]
    for shard in tmp_path.glob("*.safetensors"):
        shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"shard-.*is missing or broken"):
        diffs[0]
    for shard in tmp_path.glob("*.safetensors"):
        shard.unlink()
    assert not store.metas(), "what has lost its shard is made anew"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_diff_of_a_store_is_its_row_of_the_shard_in_any_precision(base, diffs, tmp_path, dtype):
    """Read without safetensors, against what safetensors reads; ranks differ, and a module is missing in one."""
    store = Store(tmp_path, base.fingerprint)
    store.add(["a", "b", "c"], diffs, dtype=dtype)
    (shard,) = tmp_path.glob("*.safetensors")
    whole = load_file(shard)
    assert {t.dtype for t in whole.values()} == {dtype}
    for row, diff in enumerate(store.diffs()):
        assert len(diff.factors) == len(whole) // 2
        for name, (a, b) in diff.factors.items():
            assert a.dtype == torch.float32
            assert torch.equal(a, whole[f"{name}.A"][row].float()) and torch.equal(b, whole[f"{name}.B"][row].float())
    save_peft(store.diffs()[1], tmp_path / "out", base_name="tiny")  # though its factors lie in one buffer
    assert load_peft(tmp_path / "out").norms() == pytest.approx(store.diffs()[1].norms())
    store.add(["nothing"], [WeightDiff({}, base.fingerprint)])
    assert not store.load(["nothing"])[0].factors


@pytest.mark.parametrize("damage", [lambda raw: raw[:-1], lambda raw: raw[:8] + b"[" + raw[9:], lambda raw: raw[:5]])
def test_a_shard_that_is_cut_off_or_overwritten_is_named(base, tmp_path, damage):
    store = Store(tmp_path, base.fingerprint)
    store.add(["a"], [random_diff(base, 1, 0)])
    (shard,) = tmp_path.glob("*.safetensors")
    shard.write_bytes(damage(shard.read_bytes()))
    with pytest.raises(ValueError, match=f"{shard.name} is missing or broken"):
        store.load(["a"])


def test_what_is_asked_of_a_store_costs_the_same_however_much_it_holds(base, tmp_path, monkeypatch):
    """One record is parsed and one shard looked for, not all; and what has lost its shard is not there."""
    store, diff = Store(tmp_path, base.fingerprint), random_diff(base, 1, 0)
    for name in "abcde":
        store.add([name], [diff])
    parsed, looked = [], []
    loads, is_file = json.loads, type(tmp_path).is_file
    monkeypatch.setattr("weightdiff.store.json.loads", lambda text: parsed.append(text) or loads(text))
    monkeypatch.setattr(type(tmp_path), "is_file", lambda path: looked.append(path) or is_file(path))
    monkeypatch.setattr(type(tmp_path), "glob", lambda *_: pytest.fail("looked through the folder"))
    assert list(store.metas(["d", "x", "b"])) == ["d", "b"]
    assert len(parsed) == len(looked) == 2
    assert len(store.diffs(["c"])) == 1 and len(looked) == 3
    monkeypatch.undo()
    assert store.ids() == list(store.metas()) == list("abcde")
    sorted(tmp_path.glob("*.safetensors"))[0].unlink()
    assert len(store.ids()) == len(store.metas(list("abcde"))) == len(store.metas()) == 4
    (lost,) = set("abcde") - set(store.ids())
    with pytest.raises(ValueError, match=f"has no diff '{lost}'"):
        store.diffs([lost])


def test_stacking_diffs_of_one_rank_is_stacking_diffs_of_several(base):
    """Diffs of one rank take a shorter way than diffs to be padded; both give each diff's own change."""
    same, more = [random_diff(base, 2, seed) for seed in range(3)], random_diff(base, 3, 9, ("q_proj",))
    short, padded = stack(same, base.shapes), stack([*same, more], base.shapes)
    for name, (out, inn) in base.shapes.items():
        assert short.a[name].shape == (3, 2, inn) and short.b[name].shape == (3, out, 2)
        assert padded.a[name].shape == (4, 3 if "q_proj" in name else 2, inn)
        for n, diff in enumerate([*same, more]):
            expected = diff.to_dense(name) if name in diff.factors else torch.zeros(out, inn)
            for factors in (padded, short)[: 1 + (n < 3)]:
                assert torch.allclose(factors.b[name][n] @ factors.a[name][n], expected, atol=1e-6)
    half = WeightDiff({k: (a.bfloat16(), b.bfloat16()) for k, (a, b) in same[0].factors.items()})
    assert {t.dtype for t in stack([half], base.shapes).tensors()} == {torch.float32}


def test_a_store_takes_no_diff_of_another_base_and_keeps_empty_ones(base, tmp_path):
    store, diff = Store(tmp_path, base.fingerprint), random_diff(base, 1, 0)
    for stranger in (None, "another"):
        with pytest.raises(ValueError, match=r"one that is to be added (carries no fingerprint|is of another)"):
            store.add(["a"], [WeightDiff(diff.factors, stranger)])
    store.add(["none", "nothing", "some"], [WeightDiff({}, base.fingerprint), WeightDiff({}, base.fingerprint), diff])
    assert [d.norm() > 0 for d in Store(tmp_path).load(["none", "nothing", "some"])] == [False, False, True]
