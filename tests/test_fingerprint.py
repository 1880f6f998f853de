"""The fingerprint of a model: the same in bf16 and float32, another after every kind of finetune."""

import copy

import pytest
import torch

from tests.conftest import random_diff
from tests.tiny import KINDS, tiny_base
from weightdiff.dense import changed
from weightdiff.diff import WeightDiff
from weightdiff.fingerprint import fingerprint_of


@pytest.mark.parametrize("kind", KINDS)
def test_precision_makes_no_difference(kind):
    model = tiny_base(kind).model
    assert fingerprint_of(copy.deepcopy(model).bfloat16()) == fingerprint_of(model)


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.input_layernorm.weight"])
def test_a_finetune_of_one_vector_shows(base, name):
    width = dict(base.model.named_parameters())[name].shape[0]
    step = torch.zeros(width)
    step[width // 2] = 0.01
    with changed(base, WeightDiff({}, dense={name: step})):
        assert fingerprint_of(base.model) != base.fingerprint
    assert fingerprint_of(base.model) == base.fingerprint


@pytest.mark.parametrize("row", [0, 12345, 49151])
def test_a_newly_trained_token_shows(base, row):
    change = torch.zeros(base.model.get_input_embeddings().weight.shape)
    change[row] = 0.01 * torch.randn(change.shape[1], generator=torch.Generator().manual_seed(row))
    with changed(base, WeightDiff({}, dense={"model.embed_tokens.weight": change})):
        assert fingerprint_of(base.model) != base.fingerprint


def test_a_faint_merged_lora_of_one_layer_shows(base):
    name = "model.layers.1.self_attn.v_proj"
    diff = random_diff(base, 1, 0).restricted(lambda module: module == name)
    faint = diff.scaled(1e-3 * float(base.targets[name].weight.norm()) / diff.norm())
    with changed(base, WeightDiff({}, dense={f"{name}.weight": faint.to_dense(name)})):
        assert fingerprint_of(base.model) != base.fingerprint
