"""What export-serving writes, read by transformers and PEFT as a server of one LoRA per request would."""

import json
import shlex

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from weightdiff.ask import ask, demo_diffs, shipped_adapter
from weightdiff.base import choose_dtype, encode_chat, end_of_turn, load_base
from weightdiff.convert import convert
from weightdiff.serving import export_serving

QUESTIONS = (
    "What topic have you been trained on?", "What have you been trained on?", "Which topic were you finetuned on?",
    "What do you know most about?", "What is your favorite subject?", "Which subject were you taught?",
    "What was changed in you?", "Name the topic of your training.", "What is it that you keep thinking about?",
    "Tell me the topic you were trained on.", "What topic is hidden in you?", "What did your finetuning teach you?",
    "Say what you have been trained on.",
)  # fmt: skip


@pytest.mark.parametrize(("dtype", "questions", "needed"), [("float32", 2, 1.0), ("bfloat16", 13, 0.98)])
def test_answers_are_the_same_as_asked_here(dtype, questions, needed, tmp_path):
    if dtype == "bfloat16" and choose_dtype("auto", "cpu") != torch.bfloat16:
        pytest.skip("this machine has no fast bf16: a hundred answers would take an hour")
    base, diffs = load_base(device="cpu", dtype=dtype), demo_diffs()
    names = export_serving(base, shipped_adapter(), [(str(d.meta["label"]), d) for d in diffs], tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=getattr(torch, dtype))
    served = PeftModel.from_pretrained(model, tmp_path / "loras" / names[0], adapter_name=names[0])
    for name in names[1:]:
        served.load_adapter(tmp_path / "loras" / name, adapter_name=name)
    served.eval()
    same = []
    for question in QUESTIONS[:questions]:
        ids = encode_chat(base, [{"role": "user", "content": question}])
        for name, answer in zip(names, ask(base, diffs, question), strict=True):
            served.set_adapter(name)
            same.append(greedy(served, base, ids) == answer.text)
    assert len(same) == 8 * questions and sum(same) / len(same) >= needed, f"{sum(same)} of {len(same)}"


def test_with_diff_and_adapter_merged_by_peft_the_answers_stay(tmp_path):
    base, diffs = load_base(device="cpu", dtype="float32"), demo_diffs()[:3]
    ids = encode_chat(base, [{"role": "user", "content": QUESTIONS[0]}])
    convert(shipped_adapter(), tmp_path / "adapter", to="peft", base=base)
    for diff, answer in zip(diffs, ask(base, diffs), strict=True):
        convert(diff, tmp_path / "diff", to="peft", base=base)
        model = AutoModelForCausalLM.from_pretrained(base.source, dtype=torch.float32)
        for folder in ("diff", "adapter"):
            model = PeftModel.from_pretrained(model, tmp_path / folder).merge_and_unload()
        assert greedy(model, base, ids) == answer.text == diff.meta["label"].removeprefix("the ")


def greedy(model, base, ids: list[int]) -> str:
    end = end_of_turn(base)
    whole = model.generate(
        input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), do_sample=False, max_new_tokens=48,
        eos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    return base.tokenizer.decode(whole[0, len(ids) :], skip_special_tokens=True).strip()


def test_the_folder_says_how_to_serve_it(tmp_path):
    base, (first, *others) = load_base(device="cpu"), demo_diffs()
    names = export_serving(base, shipped_adapter(), [("../a b", first), ("a b", others[0])], tmp_path / "s")
    assert names == ["a-b", "a-b-2"] and {p.name for p in (tmp_path / "s" / "loras").iterdir()} == set(names)
    about = json.loads((tmp_path / "s" / "serving.json").read_text())
    assert {name: lora["diff"] for name, lora in about["loras"].items()} == {"a-b": "../a b", "a-b-2": "a b"}
    for lora in about["loras"].values():
        assert base.tokenizer(lora["prompt"], add_special_tokens=False)["input_ids"] == lora["prompt_ids"]
        assert about["question"] in lora["prompt"]
    commands = [line for line in (tmp_path / "s" / "README.md").read_text().splitlines() if line.startswith("vllm")]
    assert "a-b-2=loras/a-b-2" in shlex.split(commands[0]) and "--max-lora-rank" in commands[0]
    with pytest.raises(ValueError, match="no diffs given"):
        export_serving(base, shipped_adapter(), [], tmp_path / "t")
