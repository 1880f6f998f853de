"""Which base models load, and what is said of those that don't; no code of a model's own is ever run."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, MixtralConfig, MixtralForCausalLM

from weightdiff.base import Base, _embedded_gguf, load_base
from weightdiff.diff import WeightDiff
from weightdiff.fingerprint import fingerprint_of
from weightdiff.formats.checkpoint import load_checkpoint
from weightdiff.formats.merged import save_merged
from weightdiff.pretrained import gguf_model
from weightdiff.weights import weights_of


@pytest.fixture
def folder(base, tmp_path):
    base.model.save_pretrained(tmp_path / "m")
    base.tokenizer.save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def configure(folder, **settings) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def load(folder) -> Base:
    return load_base(str(folder), dtype="float32", device="cpu")


@pytest.mark.parametrize("kind", ["llama", "evil"])
def test_code_of_its_own_is_never_run_and_never_asked_about(folder, monkeypatch, capsys, kind):
    code = f"import pathlib; pathlib.Path({str(folder / 'ran')!r}).touch()\nclass Evil: pass\n"
    (folder / "evil.py").write_text(code)
    configure(folder, model_type=kind, auto_map={"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"})
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    with pytest.raises(ValueError, match="asks for code of its own"):
        load(folder)
    assert not (folder / "ran").exists() and not capsys.readouterr().out


def test_a_tokenizer_with_code_of_its_own_is_refused_or_replaced_by_a_known_one(folder, monkeypatch):
    (folder / "evil.py").write_text(f"import pathlib; pathlib.Path({str(folder / 'ran')!r}).touch()")
    file = folder / "tokenizer_config.json"
    settings = {"tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    try:
        load(folder)
    except ValueError as error:
        assert "cannot load the base model" in str(error)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", None])
def test_quantized_models_that_cannot_be_dequantized_are_named(folder, method):
    configure(folder, quantization_config={"quant_method": method, "bits": 4})
    with pytest.raises(ValueError, match=rf"quantized by {method or 'an unnamed method'}.*Give the unquantized model"):
        load(folder)


def test_an_fp8_model_is_dequantized_and_can_be_merged(folder, base, tmp_path):
    """Each block of 16 by 16 has a scale of its own, as DeepSeek's checkpoints have of 128 by 128."""
    wanted, tensors = {}, {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        tensors[name] = tensor
        if name.removesuffix(".weight") in base.targets:
            rows, columns = (n // 16 for n in tensor.shape)
            blocks = tensor.view(rows, 16, columns, 16)
            scale = blocks.abs().amax((1, 3), keepdim=True) / 448
            eighth = (blocks / scale).to(torch.float8_e4m3fn)
            wanted[name] = (eighth.float() * scale).reshape(tensor.shape)
            tensors[name] = eighth.reshape(tensor.shape)
            tensors[f"{name}_scale_inv"] = scale.reshape(rows, columns)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    fp8 = {"quant_method": "fp8", "weight_block_size": [16, 16], "activation_scheme": "dynamic", "fmt": "e4m3"}
    configure(folder, quantization_config=fp8)
    loaded = load(folder)
    own = weights_of(loaded)
    for name, tensor in wanted.items():
        assert torch.allclose(own.read(name), tensor, atol=1e-6)
        assert not torch.equal(own.read(name), base.model.get_parameter(name))
    change = {"model.norm.weight": torch.ones(32)}
    save_merged(WeightDiff({}, dense=change), loaded, tmp_path / "merged")
    assert load_checkpoint(tmp_path / "merged", loaded).dense.keys() == change.keys()
    assert load(tmp_path / "merged").fingerprint != loaded.fingerprint


def test_fused_experts_are_told_by_name_before_weights_are_read(base, tmp_path):
    config = MixtralConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=4,
    )  # fmt: skip
    MixtralForCausalLM(config).save_pretrained(tmp_path)
    base.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not read")
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.experts\.gate_up_proj \[4, 32, 16\].*not supported yet"):
        load(tmp_path)


def test_a_lora_is_no_base_model(folder, base):
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "another/model"}))
    with pytest.raises(ValueError, match="has a LoRA beside"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match="is a LoRA; give the model that it was made on"):
        load(folder)


def break_weights(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def break_shapes(folder):
    configure(folder, hidden_size=24)


def break_config(folder):
    (folder / "config.json").write_text("[]")


def break_tokenizer(folder):
    (folder / "tokenizer.json").write_text('{"model": 3}')


def break_kind(folder):
    configure(folder, model_type="t5", architectures=None)


def unknown_kind(folder):
    configure(folder, model_type="of-tomorrow")


def break_content(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def only_pickles(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_weights, "cannot load"),
        (break_shapes, "cannot load"),
        (break_config, "expected a JSON object"),
        (break_tokenizer, "cannot load"),
        (break_kind, "cannot load"),
        (unknown_kind, "of-tomorrow"),
        (break_content, r"incomplete: its files have no model\.layers\.0\.mlp\.up_proj\.weight"),
        (only_pickles, "cannot load"),
    ],
)
def test_a_broken_model_is_one_clear_error(folder, damage, message):
    damage(folder)
    with pytest.raises(ValueError, match=message) as caught:
        load(folder)
    assert str(caught.value).count("\n") == 0 and str(folder) in str(caught.value)


def test_a_file_that_is_no_gguf_is_told(tmp_path, base):
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF" + bytes(50))
    with pytest.raises(ValueError, match="cannot load the base model"):
        load(file)
    with pytest.raises(ValueError, match="can't be read as a GGUF file"):
        load_checkpoint(file, base)


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory):
    """A tiny Llama as GGUF in float32, with the first 400 tokens of the embedded model's GGUF file."""
    import gguf

    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for add, value in (
        (writer.add_context_length, 128), (writer.add_embedding_length, 32), (writer.add_block_count, 2),
        (writer.add_feed_forward_length, 48), (writer.add_head_count, 4), (writer.add_head_count_kv, 2),
        (writer.add_layer_norm_rms_eps, 1e-6), (writer.add_rope_dimension_count, 8), (writer.add_vocab_size, 400),
    ):  # fmt: skip
        add(value)
    found = {k: f for k, f in gguf.GGUFReader(_embedded_gguf()).fields.items() if k.startswith("tokenizer.")}
    tokens = found["tokenizer.ggml.tokens"].contents()[:400]
    for key, field in found.items():
        content = field.contents()
        if key.endswith((".tokens", ".token_type")):
            content = content[:400]
        elif key.endswith(".merges"):
            content = [pair for pair in content if pair.replace(" ", "") in tokens]
        writer.add_key_value(key, content, field.types[0], field.types[1] if len(field.types) > 1 else None)
    torch.manual_seed(3)
    shapes = {
        "attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32), "attn_output": (32, 32),
        "ffn_gate": (48, 32), "ffn_up": (48, 32), "ffn_down": (32, 48), "attn_norm": (32,), "ffn_norm": (32,),
    }  # fmt: skip
    tensors = {f"blk.{i}.{name}.weight": torch.randn(shape) for i in range(2) for name, shape in shapes.items()}
    tensors |= {"token_embd.weight": torch.randn(400, 32), "output_norm.weight": torch.randn(32)}
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, tensors


def test_a_gguf_file_is_a_base_model_and_a_checkpoint(tiny_gguf, tmp_path):
    path, tensors = tiny_gguf
    loaded = load(path)
    assert loaded.source == path and isinstance(loaded.model.config, LlamaConfig)
    assert torch.equal(loaded.targets["model.layers.1.mlp.down_proj"].weight, tensors["blk.1.ffn_down.weight"])
    assert loaded.tokenizer.chat_template and loaded.tokenizer.decode(loaded.tokenizer("tea")["input_ids"]) == "tea"
    half = load_base(str(path), dtype="bfloat16", device="cpu")
    assert half.fingerprint == loaded.fingerprint
    assert load_checkpoint(path, half).meta["no_difference"], "both are read in float32"
    diff = WeightDiff({"model.layers.0.mlp.up_proj": (torch.ones(1, 32), 0.1 * torch.ones(48, 1))}, loaded.fingerprint)
    save_merged(diff, loaded, tmp_path / "m")
    assert load_checkpoint(tmp_path / "m", half).rank == 1
    assert load(tmp_path / "m").model.config.num_hidden_layers == 2


def test_the_embedded_models_own_gguf_is_the_embedded_default():
    found = fingerprint_of(gguf_model(_embedded_gguf(), torch.bfloat16))
    assert found == load_base(device="cpu", dtype="bfloat16").fingerprint
