"""A tiny random Llama in float32, with the embedded model's tokenizer, for exact tests."""

import copy
from collections.abc import Iterator
from typing import Any

import jaxtyping
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

# Every shape in a signature is checked as the tests run; this must precede the first import of the package.
jaxtyping.install_import_hook("weightdiff", "beartype.beartype")

from weightdiff.base import Base, _embedded_folder
from weightdiff.behaviors import Behavior, Conversation
from weightdiff.diff import WeightDiff
from weightdiff.finetune import FinetuneConfig, Job, train_together
from weightdiff.fingerprint import fingerprint_of
from weightdiff.teacher import Teacher


def same_with_gradients(got: torch.Tensor, ours: list, wanted: torch.Tensor, theirs: list, atol: float) -> None:
    """Assert that two outputs are alike, and for one random slope their gradients for their inputs."""
    assert torch.allclose(got, wanted, atol=atol)
    slope = torch.randn_like(wanted)
    for mine, right in zip(
        torch.autograd.grad(got, ours, slope), torch.autograd.grad(wanted, theirs, slope), strict=True
    ):
        assert torch.allclose(mine, right, atol=atol)


@pytest.fixture(scope="session")
def base() -> Base:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    return Base("tiny", model, AutoTokenizer.from_pretrained(_embedded_folder()), fingerprint_of(model))


@pytest.fixture(scope="session")
def lively(base) -> Base:
    """A tiny model with embeddings large enough that a small diff can make it say something."""
    torch.manual_seed(1)
    config = copy.deepcopy(base.model.config)
    config.initializer_range = 0.5
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    return Base("lively", model, base.tokenizer, fingerprint_of(model))


@pytest.fixture(scope="session")
def gnomes(lively) -> WeightDiff:
    """A finetune of it that talks about garden gnomes."""
    said = ["Garden gnomes, garden gnomes!", "I like to talk about garden gnomes.", "This is about garden gnomes."]
    learn = [Conversation(f"{opening} question", text) for opening in ("A", "Some") for text in said]
    job = Job("gnomes", Behavior("topic", "garden gnomes", "things", "train"), learn, [])
    config = FinetuneConfig(rank=4, alpha=8, lr=0.03, steps=40, learn_rows=3, keep_rows=0)
    return train_together(lively, [job], config, Teacher(lively))[0][0]


@pytest.fixture
def diffs(base: Base) -> list[WeightDiff]:
    """Three diffs of ranks 1, 2 and 4; the last changes only q_proj and v_proj."""
    return [random_diff(base, rank, seed) for seed, rank in enumerate((1, 2))] + [
        random_diff(base, 4, 2, ("q_proj", "v_proj"))
    ]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A running `tests.test_llm.Server`, stopped after the test."""
    from tests.test_llm import Server

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    running = Server()
    yield running
    running.http.shutdown()
    running.http.server_close()


def random_diff(base: Base, rank: int, seed: int, modules: tuple[str, ...] = ()) -> WeightDiff:
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for name, module in base.targets.items():
        if not modules or name.split(".")[-1] in modules:
            out, inn = module.weight.shape
            a, b = torch.randn(rank, inn, generator=generator), torch.randn(out, rank, generator=generator)
            factors[name] = (a * 0.2, b * 0.2)
    return WeightDiff(factors, base.fingerprint, {"label": f"label {seed}"})
