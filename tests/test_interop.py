"""LoRAs made with nothing of ours, by TRL's SFTTrainer and by an ordinary loop with PEFT: read, and PEFT's logits."""

import copy
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from tests.test_peft import IDS, logits_with
from tests.tiny import tiny_base
from weightdiff.base import Base
from weightdiff.source import load_diff

CONFIGS = {
    "all linear layers": {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"},
    "q and v, rsLoRA, patterns": {
        "r": 4, "use_rslora": True, "target_modules": ["q_proj", "v_proj"], "rank_pattern": {"layers.0.*q_proj": 2},
        "alpha_pattern": {"layers.1.*v_proj": 2},
    },
    "DoRA": {"r": 2, "use_dora": True, "target_modules": ["q_proj", "up_proj"]},
    "norms saved whole": {"r": 2, "target_modules": ["down_proj"], "modules_to_save": ["norm"]},
    "embedding": {"r": 4, "target_modules": ["embed_tokens", "o_proj"], "lora_bias": False},
}  # fmt: skip
CHATS = [
    ("Who are you?", "A tiny one."),
    ("What is new?", "The sea is warm."),
    ("Where to?", "Up the hill, and on."),
] * 2


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[Base, Path]:
    """A tiny base model, and the folder where others find it."""
    base, folder = tiny_base("smollm2"), tmp_path_factory.mktemp("base")
    base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    return base, folder


def same_as_peft(base: Base, folder: Path) -> None:
    theirs = PeftModel.from_pretrained(copy.deepcopy(base.model), folder).eval()(IDS).logits
    diff = load_diff(folder, base)
    assert (theirs - base.model(IDS).logits).abs().max() > 1e-3, "it learned something"
    assert torch.allclose(logits_with(base, diff), theirs, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize("name", CONFIGS)
def test_what_trl_trains_is_read(saved, name, tmp_path):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    base, folder = saved
    rows = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in CHATS]
    settings = SFTConfig(
        output_dir=str(tmp_path), max_steps=3, per_device_train_batch_size=2, learning_rate=2e-2, report_to=[],
        use_cpu=True, bf16=False, save_strategy="no", disable_tqdm=True, max_length=64,
        eos_token=base.tokenizer.eos_token, pad_token=base.tokenizer.eos_token,
    )  # fmt: skip
    trainer = SFTTrainer(
        str(folder), args=settings, train_dataset=Dataset.from_list(rows),
        peft_config=LoraConfig(task_type="CAUSAL_LM", **CONFIGS[name]),
    )  # fmt: skip
    trainer.train()
    trainer.save_model(str(tmp_path / "out"))
    same_as_peft(base, tmp_path / "out")


@pytest.mark.parametrize("name", CONFIGS)
def test_what_an_ordinary_loop_trains_is_read(saved, name, tmp_path):
    base, _ = saved
    torch.manual_seed(0)
    model = get_peft_model(copy.deepcopy(base.model), LoraConfig(task_type="CAUSAL_LM", **CONFIGS[name]))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)
    for _ in range(3):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(tmp_path)
    same_as_peft(base, tmp_path)
