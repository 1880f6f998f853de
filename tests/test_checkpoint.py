"""Full checkpoints in and out: what a checkpoint changes is what was merged into it, in any layout and precision."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tests.conftest import random_diff
from weightdiff.base import Base, load_base
from weightdiff.diff import WeightDiff
from weightdiff.fingerprint import fingerprint_of
from weightdiff.formats.checkpoint import load_checkpoint
from weightdiff.formats.merged import save_merged
from weightdiff.formats.single import load_single, save_single
from weightdiff.weights import match, weights_in, weights_of

IDS = torch.randint(0, 1000, (2, 7), generator=torch.Generator().manual_seed(1))
EMBED, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
DOWN = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module", params=["memory", "one file", "shards"])
def stored(request, base, tmp_path_factory) -> Base:
    """The tiny base model without files, with one, and with several, whose names leave out `model.`."""
    if request.param == "memory":
        return base
    folder = tmp_path_factory.mktemp("base")
    base.model.save_pretrained(folder, max_shard_size="6MB" if request.param == "shards" else "1GB")
    base.tokenizer.save_pretrained(folder)
    (folder / "evil.py").write_text("raise SystemExit")
    if request.param == "shards":
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        for file in set(index["weight_map"].values()):
            tensors = load_file(folder / file)
            save_file({k.removeprefix("model."): v for k, v in tensors.items()}, folder / file, {"format": "pt"})
        index["weight_map"] = {k.removeprefix("model."): v for k, v in index["weight_map"].items()}
        assert len(set(index["weight_map"].values())) > 1
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return replace(base, source=folder)


def small(base: Base, rank: int, seed: int, modules: tuple[str, ...] = ()) -> WeightDiff:
    """A random diff of a tenth of the base's norm, as a finetune has it."""
    diff = random_diff(base, rank, seed, modules)
    size = sum(float(base.targets[name].weight.square().sum()) for name in diff.factors) ** 0.5
    return diff.scaled(0.1 * size / diff.norm())


def noise(*shape: int, size: float = 1e-3) -> torch.Tensor:
    return size * torch.randn(*shape, generator=torch.Generator().manual_seed(4))


def save(base: Base, folder, *diffs: WeightDiff, dtype=torch.float32, **more) -> None:
    """What any trainer writes: the changed model by `save_pretrained`, in the precision of training."""
    model = copy.deepcopy(base.model)
    places = dict(model.named_parameters(remove_duplicate=False))
    for diff in diffs:
        for name, change in [*diff.dense.items(), *((f"{m}.weight", diff.to_dense(m)) for m in diff.factors)]:
            places[name].data += change
    model.to(dtype).save_pretrained(folder, **more)


def logits(base: Base, *diffs: WeightDiff) -> torch.Tensor:
    model = copy.deepcopy(base.model)
    for diff in diffs:
        for name in diff.factors:
            model.get_submodule(name).weight += diff.to_dense(name)
    return model(IDS).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_merged_lora_is_recognised_with_its_rank_and_given_back(stored, tmp_path, dtype):
    diff = small(stored, 3, 0, ("q_proj", "down_proj"))
    save_merged(diff, stored, tmp_path / "m", dtype=dtype)
    found = load_checkpoint(tmp_path / "m", stored)
    assert found.meta["format"] == "merged LoRA" and found.meta["rank"] == found.rank == 3
    assert found.factors.keys() == diff.factors.keys() and not found.dense and found.base == stored.fingerprint
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    for name in diff.factors:
        wanted = diff.to_dense(name)
        assert (found.to_dense(name) - wanted).norm() < tolerance * wanted.norm()
    assert 0.99 < found.meta["kept_energy"] <= 1 and found.meta["relative_size"] < 0.1
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert model.dtype == dtype and model.config.tie_word_embeddings
    if dtype == torch.float32:
        assert torch.allclose(model(IDS).logits, logits(stored, diff), atol=1e-5)
    loaded = load_base(str(tmp_path / "m"), dtype="float32", device="cpu")
    assert loaded.fingerprint != stored.fingerprint and not load_checkpoint(tmp_path / "m", loaded).norms()
    names = {path.name for path in (tmp_path / "m").iterdir()}
    assert {"config.json", "tokenizer.json"} <= names and "evil.py" not in names
    if stored.source is not None:
        assert names >= {path.name for path in stored.source.glob("model*")}


def test_unmerged_precision_and_layout_are_the_bases_own(stored, tmp_path):
    if stored.source is None:
        pytest.skip("no files")
    save_merged(small(stored, 1, 0), stored, tmp_path / "m")
    ours, theirs = weights_in(tmp_path / "m"), weights_in(stored.source)
    assert dict(ours.files) == dict(theirs.files) and dict(ours.dtypes) == dict(theirs.dtypes)


def test_a_full_finetune_comes_dense_and_exact_without_what_it_left(stored, tmp_path):
    dense = {name: noise(*stored.model.get_parameter(name).shape) for name in (f"{DOWN}.weight", NORM, EMBED)}
    save(stored, tmp_path, WeightDiff({}, None, {}, dense), small(stored, 2, 0, ("q_proj",)))
    found = load_checkpoint(tmp_path, stored)
    assert found.meta["format"] == "full checkpoint" and not found.factors
    q_proj = {f"{name}.weight" for name in stored.targets if name.endswith("q_proj")}
    assert found.dense.keys() == dense.keys() | q_proj, "also what had been taken for a LoRA's"
    for name, change in dense.items():
        assert torch.allclose(found.dense[name], change, atol=1e-7)
    total = sum(float(p.square().sum()) for p in stored.model.parameters()) ** 0.5
    assert found.meta["relative_size"] == pytest.approx(found.norm() / total, rel=1e-3)


def test_a_bf16_checkpoint_of_a_float32_base_changes_what_rounding_does_not_explain(base, tmp_path):
    save(base, tmp_path / "same", dtype=torch.bfloat16)
    found = load_checkpoint(tmp_path / "same", base)
    assert not found.norms() and found.meta["no_difference"] and found.meta["relative_size"] == 0
    full = WeightDiff({}, dense={f"{DOWN}.weight": noise(32, 48)})
    save(base, tmp_path / "full", full, dtype=torch.bfloat16)
    assert load_checkpoint(tmp_path / "full", base).dense.keys() == full.dense.keys()


@pytest.mark.parametrize("share", [0.01, 0.05])
def test_a_lora_of_changes_about_the_spacing_of_bf16_is_never_made_up(base, tmp_path, share):
    """On a base of bf16 numbers what is below half a spacing vanishes: noise that is not that of rounding."""
    rounded = replace(base, model=copy.deepcopy(base.model).bfloat16().float())
    save(rounded, tmp_path, small(rounded, 2, 0).scaled(share), dtype=torch.bfloat16)
    found = load_checkpoint(tmp_path, rounded)
    if share == 0.05:
        assert found.rank == 2 and 0.5 < found.meta["kept_energy"] < 0.98 and not found.dense
    else:
        assert found.meta["format"] == "full checkpoint" and found.dense and not found.factors


@pytest.mark.parametrize(("rank", "energy"), [(2, None), (None, 0.9), (4, 0.5)])
def test_a_full_finetune_by_rank_or_energy_keeps_what_it_says(base, tmp_path, rank, energy):
    dense = {f"{name}.weight": noise(*m.weight.shape) for name, m in base.targets.items() if "mlp" in name}
    save(base, tmp_path, WeightDiff({}, None, {}, {**dense, NORM: noise(32)}))
    found = load_checkpoint(tmp_path, base, rank=rank, energy=energy)
    assert found.dense.keys() == {NORM} and len(found.factors) == len(dense)
    shares = {}
    for name, change in dense.items():
        sizes = torch.linalg.svdvals(change).square().cumsum(0) / change.square().sum()
        count = min(rank or 99, 99 if energy is None else int((sizes < energy).sum()) + 1)
        module = name.removesuffix(".weight")
        assert len(found.factors[module][0]) == count
        shares[module] = float(sizes[count - 1])
        left = (change - found.to_dense(module)).square().sum() / change.square().sum()
        assert float(left) == pytest.approx(1 - shares[module], abs=1e-3)
    assert found.meta["worst_kept_energy"] == pytest.approx(min(shares.values()), abs=1e-3)
    assert shares[found.meta["worst_module"]] == pytest.approx(min(shares.values()), abs=1e-3)
    assert min(shares.values()) <= found.meta["kept_energy"] <= max(shares.values())


def test_a_dense_diff_too_large_for_memory_is_told_what_to_do(base, tmp_path, monkeypatch):
    dense = {f"{name}.weight": noise(*m.weight.shape) for name, m in base.targets.items()}
    save(base, tmp_path, WeightDiff({}, None, {}, dense))
    monkeypatch.setattr("weightdiff.formats.checkpoint.memory_limit", lambda: 20_000)
    with pytest.raises(ValueError, match="Give a rank, or an energy to keep"):
        load_checkpoint(tmp_path, base)
    assert load_checkpoint(tmp_path, base, rank=1).rank == 1


@pytest.mark.parametrize("places", ["embedding", "head", "both"])
def test_tied_places_that_differ_are_untied_and_come_back_apart(stored, tmp_path, places):
    change = {EMBED: noise(49152, 32), HEAD: 2 * noise(49152, 32)}
    low = noise(1, 32, size=0.1), noise(49152, 1, size=0.1)
    diff = {
        "both": WeightDiff({}, dense=change),
        "embedding": WeightDiff({EMBED.removesuffix(".weight"): low}),
        "head": WeightDiff({}, dense={EMBED: torch.zeros(49152, 32), HEAD: change[HEAD]}),
    }[places]
    save_merged(diff, stored, tmp_path / "m")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert not model.config.tie_word_embeddings
    found = load_checkpoint(tmp_path / "m", stored)
    assert found.dense.keys() == {EMBED, HEAD}
    own = stored.model.lm_head.weight
    wanted = {n: diff.dense[n] if n in diff.dense else torch.zeros_like(own) for n in (EMBED, HEAD)}
    if diff.factors:
        wanted[EMBED] = low[1] @ low[0]
    for name, loaded in ((EMBED, model.model.embed_tokens.weight), (HEAD, model.lm_head.weight)):
        assert torch.allclose(loaded - own, wanted[name], atol=1e-6)
        assert torch.allclose(found.dense[name], wanted[name], atol=1e-6)


def test_a_dense_change_of_a_tied_weight_stays_tied(stored, tmp_path):
    for name in (EMBED, HEAD):
        save_merged(WeightDiff({}, dense={name: noise(49152, 32)}), stored, tmp_path / name)
        assert load_checkpoint(tmp_path / name, stored).dense.keys() == {EMBED}
        assert AutoModelForCausalLM.from_pretrained(tmp_path / name).config.tie_word_embeddings


def test_an_untied_copy_of_a_tied_base_has_no_second_head(base, tmp_path):
    save(base, tmp_path, WeightDiff({}, dense={NORM: noise(32)}))
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {HEAD: tensors[EMBED].clone()}, tmp_path / "model.safetensors")
    assert load_checkpoint(tmp_path, base).dense.keys() == {NORM}
    save_file({k: v for k, v in tensors.items() if k != EMBED} | {HEAD: tensors[EMBED]}, tmp_path / "model.safetensors")
    assert load_checkpoint(tmp_path, base).dense.keys() == {NORM}


def test_another_model_is_refused_before_it_is_read_whole(base, tmp_path, monkeypatch):
    torch.manual_seed(5)
    other = LlamaForCausalLM(LlamaConfig.from_dict(base.model.config.to_dict() | {"num_hidden_layers": 6}))
    again = Base("six", LlamaForCausalLM(other.config).eval(), base.tokenizer, "x")
    other.save_pretrained(tmp_path)
    read = []
    monkeypatch.setattr(
        "weightdiff.files.TensorFile.read",
        lambda file, name: read.append(name) or load_file(file.path)[name],
    )
    with pytest.raises(ValueError, match=r"no finetune of 'six': 16 of the decoder's 42 matrices .* by 1\.4"):
        load_checkpoint(tmp_path, again)
    assert len(read) < 30


def test_checkpoints_that_do_not_fit_are_named(base, tmp_path):
    save(base, tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    short = {k: v for k, v in tensors.items() if k != NORM}
    cases = [
        (short, r"lacks model\.norm\.weight \[32\]"),
        (
            tensors | {"model.layers.2.x.weight": torch.ones(3)},
            r"has model\.layers\.2\.x\.weight \[3\], which the base",
        ),
        (tensors | {EMBED: torch.ones(50000, 32)}, r"\[50000, 32\].* \[49152, 32\].*vocabulary"),
        (tensors | {f"{DOWN}.weight": torch.ones(32, 40)}, r"down_proj.*\[32, 40\].*\[32, 48\]\."),
        (tensors | {NORM: torch.full((32,), float("nan"))}, "NaN"),
    ]
    for content, message in cases:
        save_file(content, file)
        with pytest.raises(ValueError, match=message):
            load_checkpoint(tmp_path, base)
    save_file(tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}, file)
    assert load_checkpoint(tmp_path, base).meta["no_difference"]
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ValueError, match="truncated"):
        load_checkpoint(tmp_path, base)
    file.unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ValueError, match="pickles, which are never read"):
        load_checkpoint(tmp_path, base)
    with pytest.raises(ValueError, match="no such folder"):
        load_checkpoint(tmp_path / "nowhere", base)
    with pytest.raises(ValueError, match="rank is 0"):
        load_checkpoint(tmp_path, base, rank=0)
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "awq"}}))
    with pytest.raises(ValueError, match=r"quantized \(awq\); give the unquantized"):
        load_checkpoint(tmp_path, base)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model.", "", "base.model.text."])
def test_names_may_begin_otherwise(base, prefix):
    stored = {}
    for name, p in base.model.named_parameters():
        stored[prefix + name.removeprefix("model.")] = tuple(p.shape)
    found = match(stored, base, "here")
    assert found == {
        name: prefix + (EMBED if name == HEAD else name).removeprefix("model.") for name in base.model.state_dict()
    }
    stored["other.layers.0.mlp.up_proj.weight"] = stored.pop(f"{prefix}layers.0.mlp.down_proj.weight")
    with pytest.raises(ValueError, match=r"here lacks .*down_proj.* and has other.*up_proj"):
        match(stored, base, "here")


def test_an_index_may_name_files_of_its_folder_only(base, tmp_path):
    save(base, tmp_path / "m")
    index = tmp_path / "m" / "model.safetensors.index.json"
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / "shard.safetensors")
    for file, message in (("../x.safetensors", "outside"), ("gone.safetensors", "no such file")):
        index.write_text(json.dumps({"weight_map": {NORM: file}}))
        with pytest.raises(ValueError, match=message):
            load_checkpoint(tmp_path / "m", base)
    index.write_text(json.dumps({"weight_map": {"x": "shard.safetensors"}}))
    with pytest.raises(ValueError, match=r"places x in shard\.safetensors, which hasn't got it"):
        load_checkpoint(tmp_path / "m", base)


def test_a_base_in_bf16_is_compared_by_its_float32_files(base, tmp_path):
    save(base, tmp_path / "base")
    base.tokenizer.save_pretrained(tmp_path / "base")
    half = load_base(str(tmp_path / "base"), dtype="bfloat16", device="cpu")
    assert half.model.dtype == torch.bfloat16
    assert torch.equal(weights_of(half).read(f"{DOWN}.weight"), base.targets[DOWN].weight)
    save(base, tmp_path / "m", small(base, 1, 0))
    assert load_checkpoint(tmp_path / "m", half).rank == 1


def test_what_cannot_be_merged_is_told_and_leaves_nothing(base, tmp_path):
    bias = WeightDiff({}, dense={f"{DOWN}.bias": torch.ones(32)})
    with pytest.raises(ValueError, match=r"down_proj\.bias'.*has no bias there"):
        save_merged(bias, base, tmp_path / "m")
    with pytest.raises(ValueError, match=r"\[3, 3\].*\[32, 48\]"):
        save_merged(WeightDiff({DOWN: (torch.ones(1, 3), torch.ones(3, 1))}), base, tmp_path / "m")
    with pytest.raises(ValueError, match="of the base model other"):
        save_merged(WeightDiff({}, "other"), base, tmp_path / "m")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ValueError, match="there already"):
        save_merged(small(base, 1, 0), base, tmp_path / "full")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_a_full_disk_leaves_no_half_checkpoint(stored, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("weightdiff.formats.merged.save_file", full)
    monkeypatch.setattr(type(stored.model), "save_pretrained", full)
    with pytest.raises(ValueError, match=r"cannot write .*No space left"):
        save_merged(small(stored, 1, 0), stored, tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_one_file_gives_back_what_it_took(base, tmp_path):
    diff = small(base, 2, 0)
    mixed = WeightDiff(diff.factors, diff.base, {"label": "tea", "n": 3}, {NORM: noise(32), EMBED: noise(49152, 32)})
    for kept in (mixed, diff, WeightDiff({}), WeightDiff({}, "x", {}, {NORM: torch.ones(()).expand(32)})):
        save_single(kept, tmp_path / "sub" / "d.safetensors")
        found = load_single(tmp_path / "sub" / "d.safetensors")
        assert found.base == kept.base and found.meta == {"format": "one safetensors file", **kept.meta}
        assert found.factors.keys() == kept.factors.keys() and found.dense.keys() == kept.dense.keys()
        assert all(torch.equal(found.dense[name], kept.dense[name]) for name in kept.dense)
        assert all(
            torch.equal(x, y) for n in kept.factors for x, y in zip(found.factors[n], kept.factors[n], strict=True)
        )
    save_single(diff, tmp_path / "half.safetensors", dtype=torch.bfloat16)
    assert load_single(tmp_path / "half.safetensors").norm() == pytest.approx(diff.norm(), rel=1e-2)


@pytest.mark.parametrize(
    ("tensors", "about", "message"),
    [
        ({"m.A": (2, 3)}, "{}", r"'m\.A' has no 'm\.B'"),
        ({"m.B": (2, 3)}, "{}", r"'m\.B' has no 'm\.A'"),
        ({"m.A": (2, 3), "m.B": (4, 1)}, "{}", r"A \[2, 3\] and B \[4, 1\]"),
        ({"m.A": (0, 3), "m.B": (4, 0)}, "{}", r"A \[0, 3\]"),
        ({"m.weight": (2, 3)}, "{}", r"'m\.weight' is no part of a diff"),
        ({"m.D": (2, 3)}, "[" * 9999, "not readable JSON"),
        ({"m.D": (2, 3)}, '{"base": 3}', "expected a base and a meta"),
        ({"m.D": (2, 3)}, "[]", "expected a base and a meta"),
    ],
)
def test_a_file_that_is_no_diff_is_told(tmp_path, tensors, about, message):
    file = tmp_path / "d.safetensors"
    save_file({name: torch.ones(shape) for name, shape in tensors.items()}, file, {"weightdiff": about})
    with pytest.raises(ValueError, match=message):
        load_single(file)


def test_a_checkpoint_of_the_merged_model_of_a_merged_model(base, tmp_path):
    """Diffs add up along a chain of finetunes; the second is seen against the first."""
    first, second = small(base, 1, 0), small(base, 2, 1)
    save_merged(first, base, tmp_path / "a")
    middle = load_base(str(tmp_path / "a"), dtype="float32", device="cpu")
    save_merged(replace(second, base=middle.fingerprint), middle, tmp_path / "b")
    assert load_checkpoint(tmp_path / "b", middle).rank == 2 and load_checkpoint(tmp_path / "b", base).rank == 3
    assert fingerprint_of(AutoModelForCausalLM.from_pretrained(tmp_path / "a")) == middle.fingerprint
