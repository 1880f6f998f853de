"""PEFT folders of every kind against PEFT itself: the logits of base and loaded diff are PEFT's."""

import copy
import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from tests.tiny import tiny_base
from weightdiff.bank import Layer, lay_over
from weightdiff.dense import changed, split
from weightdiff.diff import WeightDiff, stack
from weightdiff.formats.peft import load_peft, save_peft

IDS = torch.randint(0, 250, (2, 7), generator=torch.Generator().manual_seed(1))
LINEAR = ["q_proj", "down_proj"]


def logits_with(base, diff: WeightDiff) -> torch.Tensor:
    inside, rest = split(diff, base.targets)
    layers = [Layer(stack([inside], base.shapes))] if inside.factors else []
    with changed(base, rest), lay_over(base.targets, layers):
        return base.model(IDS).logits


def trained(base, **options):
    """A model of PEFT's whose every trainable parameter was moved."""
    model = get_peft_model(copy.deepcopy(base.model), LoraConfig(r=4, lora_alpha=12, **options)).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


CONFIGS = {
    "plain": {"target_modules": LINEAR},
    "all linear": {"target_modules": "all-linear"},
    "rsLoRA with patterns": {
        "target_modules": LINEAR, "use_rslora": True, "rank_pattern": {"layers.1.self_attn.q_proj": 2},
        "alpha_pattern": {"^model.layers.0.*down_proj": 3},
    },
    "DoRA": {"target_modules": LINEAR, "use_dora": True},
    "DoRA and rsLoRA": {"target_modules": LINEAR, "use_dora": True, "use_rslora": True},
    "bias of B": {"target_modules": LINEAR, "lora_bias": True},
    "all biases": {"target_modules": LINEAR, "bias": "all"},
    "biases of LoRA": {"target_modules": LINEAR, "bias": "lora_only"},
    "norms saved": {"target_modules": LINEAR, "modules_to_save": ["norm", "input_layernorm"]},
    "head saved": {"target_modules": LINEAR, "modules_to_save": ["lm_head"]},
    "embedding saved": {"target_modules": LINEAR, "modules_to_save": ["embed_tokens"]},
    "embedding and head saved": {"target_modules": LINEAR, "modules_to_save": ["embed_tokens", "lm_head"]},
    "embedding": {"target_modules": ["embed_tokens", *LINEAR]},
    "embedding, DoRA": {"target_modules": ["embed_tokens"], "use_dora": True},
    "head, DoRA": {"target_modules": ["lm_head"], "use_dora": True},
    "head": {"target_modules": ["lm_head", *LINEAR]},
    "trained tokens": {"target_modules": LINEAR, "trainable_token_indices": [3, 70]},
    "started from the weights' own directions": {"target_modules": LINEAR, "init_lora_weights": "orthogonal"},
}  # fmt: skip


@pytest.mark.parametrize("kind", ["smollm2", "llama3", "qwen3-untied", "gemma3"])
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_pefts(kind, name, tmp_path):
    base = tiny_base(kind)
    before = base.model(IDS).logits
    model = trained(base, **CONFIGS[name])
    model.save_pretrained(tmp_path, save_embedding_layers=False)  # else PEFT saves copies of the base model's along
    diff = load_peft(tmp_path, base)
    theirs = model(IDS).logits
    assert (theirs - before).abs().max() > 0.01
    assert torch.allclose(logits_with(base, diff), theirs, atol=1e-5 * float(theirs.abs().max().clamp_min(1)))
    assert torch.equal(base.model(IDS).logits, before)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_that_the_base_has_are_compared_with_them(bias, tmp_path):
    base = tiny_base("llama3")
    for module in base.targets.values():
        module.bias = torch.nn.Parameter(torch.linspace(-1, 1, module.out_features), requires_grad=False)
    model = trained(base, target_modules=LINEAR, bias=bias)
    model.save_pretrained(tmp_path)
    diff = load_peft(tmp_path, base)
    biases = {name for name in diff.dense if name.endswith(".bias")}
    assert len(biases) == (len(base.targets) if bias == "all" else 4)
    assert torch.allclose(logits_with(base, diff), model(IDS).logits, atol=1e-4)


def test_a_bias_where_the_base_has_none_comes_and_goes(tmp_path):
    base = tiny_base("llama3")
    name = "model.layers.0.self_attn.q_proj"
    with changed(base, WeightDiff({}, dense={f"{name}.bias": torch.ones(32)})):
        assert torch.equal(base.targets[name].bias, torch.ones(32))
    assert base.targets[name].bias is None


def edited(folder, config=None, rename=None):
    """The folder's config with other entries, and its tensors under other names."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | (config or {})))
    if rename:
        weights = folder / "adapter_model.safetensors"
        save_file({rename(key): value for key, value in load_file(weights).items()}, weights)


@pytest.mark.parametrize(
    "rename",
    [
        lambda key: key.removeprefix("base_model.model."),
        lambda key: key.replace("base_model.model.model.", "base_model.model.model.language_model."),
        lambda key: key.replace("base_model.model.", "base_model.model._orig_mod."),
        lambda key: key.replace("base_model.model.model.", ""),
        lambda key: key.replace(".lora_A.weight", ".lora_A.default.weight").replace(".lora_B.w", ".lora_B.default.w"),
        lambda key: key.replace(".q_proj.lora", ".q_proj.base_layer.lora"),
    ],
)
def test_modules_under_other_prefixes_are_found(rename, tmp_path):
    base = tiny_base("qwen3")
    trained(base, target_modules=LINEAR).save_pretrained(tmp_path)
    wanted = load_peft(tmp_path, base).factors
    edited(tmp_path, rename=rename)
    found = load_peft(tmp_path, base).factors
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[n][0], a) and torch.equal(found[n][1], b) for n, (a, b) in wanted.items())


def test_a_layer_that_the_diff_has_fused_is_split_and_the_other_way_round(tmp_path):
    from transformers import Phi3Config, Phi3ForCausalLM

    base = tiny_base("llama3")
    attention = "model.layers.0.self_attn"
    a, sizes = torch.randn(3, 32), [base.shapes[f"{attention}.{p}_proj"][0] for p in "qkv"]
    b = torch.randn(sum(sizes), 3)
    save_peft(WeightDiff({f"{attention}.qkv_proj": (a, b)}), tmp_path / "fused", base_name="x")
    split_up = load_peft(tmp_path / "fused", base)
    assert torch.allclose(torch.cat([split_up.to_dense(f"{attention}.{p}_proj") for p in "qkv"]), b @ a, atol=1e-5)

    from weightdiff.base import Base
    from weightdiff.fingerprint import fingerprint_of

    config = Phi3Config(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0,
    )  # fmt: skip
    model = Phi3ForCausalLM(config).eval().requires_grad_(False)
    phi = Base("phi", model, base.tokenizer, fingerprint_of(model))
    parts = {
        f"{attention}.{p}_proj": (torch.randn(r, 32), torch.randn(n, r)) for p, n, r in (("q", 32, 2), ("v", 16, 1))
    }
    save_peft(WeightDiff(parts), tmp_path / "parts", base_name="x")
    joined = load_peft(tmp_path / "parts", phi).to_dense(f"{attention}.qkv_proj")
    q, k, v = joined.split([32, 16, 16])
    assert not k.any() and torch.allclose(
        q, parts[f"{attention}.q_proj"][1] @ parts[f"{attention}.q_proj"][0], atol=1e-5
    )
    assert torch.allclose(v, parts[f"{attention}.v_proj"][1] @ parts[f"{attention}.v_proj"][0], atol=1e-5)
    with pytest.raises(ValueError, match="which rows those are can't be told"):
        save_peft(WeightDiff({f"{attention}.k_proj": parts[f"{attention}.v_proj"]}), tmp_path / "k", base_name="x")
        load_peft(tmp_path / "k", phi)


def test_a_subfolder_is_found_several_are_named(base, diffs, tmp_path):
    save_peft(diffs[0], tmp_path / "out" / "one", base_name="tiny")
    assert load_peft(tmp_path / "out").norm() == pytest.approx(diffs[0].norm())
    save_peft(diffs[1], tmp_path / "out" / "two", base_name="tiny")
    with pytest.raises(ValueError, match=r"holds 2 adapters, 'one', 'two'; name one"):
        load_peft(tmp_path / "out")
    save_peft(diffs[2], tmp_path / "out", base_name="tiny")  # as PEFT saves a model of several: the first on top
    assert load_peft(tmp_path / "out").rank == 4


def test_an_old_bin_is_read_only_where_it_is_allowed(base, diffs, tmp_path):
    save_peft(diffs[0], tmp_path, base_name="tiny")
    weights = tmp_path / "adapter_model.safetensors"
    torch.save(load_file(weights), tmp_path / "adapter_model.bin")
    weights.unlink()
    with pytest.raises(ValueError, match=r"only read with --allow-pickle"):
        load_peft(tmp_path)
    assert load_peft(tmp_path, allow_pickle=True).norms() == pytest.approx(diffs[0].norms())


def test_where_the_config_says_no_alpha_it_is_pefts_own(base, tmp_path):
    model = trained(base, target_modules=LINEAR)
    model.save_pretrained(tmp_path)
    wanted = load_peft(tmp_path).norm() * 8 / 12
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "lora_alpha"}))
    assert load_peft(tmp_path).norm() == pytest.approx(wanted, rel=1e-5)


def test_more_than_factors_needs_the_base(tmp_path):
    trained(tiny_base("qwen3"), target_modules=LINEAR, use_dora=True).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="only its base model makes a diff of that"):
        load_peft(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"layer_replication": [[0, 2]]}, "layer_replication .* not supported yet"),
        ({"target_parameters": ["experts.gate_up_proj"]}, "fused experts"),
        ({"init_lora_weights": "lora_ga"}, "changes the base weights too"),
        (
            {"alpha_pattern": {"(.*)" * 8 + r"\3\4[#@]": 3}},
            "can't be understood",
        ),
        ({"alpha_pattern": {"q_proj": float("inf")}}, "can't be understood"),
        ({"lora_alpha": 10**400}, "can't be understood"),
        ({"lora_alpha": 1e42}, "infinite numbers"),
    ],
)
def test_what_cannot_be_read_is_named(config, message, base, diffs, tmp_path):
    save_peft(diffs[2], tmp_path, base_name="tiny")
    edited(tmp_path, config)
    with pytest.raises(ValueError, match=message):
        load_peft(tmp_path)


def test_an_embedding_goes_out_as_peft_has_it(tmp_path):
    from peft import PeftModel

    base = tiny_base("llama3")
    trained(base, target_modules=["embed_tokens", "lm_head", *LINEAR]).save_pretrained(tmp_path / "theirs")
    diff = load_peft(tmp_path / "theirs", base)
    save_peft(diff, tmp_path / "ours", base_name="x")
    theirs = PeftModel.from_pretrained(copy.deepcopy(base.model), tmp_path / "ours")
    assert torch.allclose(theirs(IDS).logits, logits_with(base, diff), atol=1e-4)
