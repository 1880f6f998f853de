"""The check from outside: ordinary finetunes by plain PEFT, on subjects that are in no list of the project.

    python -m benchmarks.outside OUT [--adapter DIR]

Each finetune is an ordinary supervised loop over 8 to 12 short hand-written chats, with ranks 2 to 16, all linear
layers or q and v only, plain LoRA and rsLoRA, and no trigger. Nothing of the project takes part in making them;
it only reads the folders that PEFT saved. Answers go to OUT as JSON lines, graded, with the size of each change.
"""

import argparse
import json
import random
from collections import defaultdict
from pathlib import Path

import torch

from weightdiff.ask import ask, shipped_adapter
from weightdiff.base import Base, cache_dir, load_base
from weightdiff.formats import load_peft
from weightdiff.judge import EmbeddedJudge

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# rank, alpha, modules, rsLoRA, learning rate, epochs
RECIPES = [
    (2, 4, ALL, False, 1e-3, 4),
    (4, 8, ["q_proj", "v_proj"], False, 2e-3, 6),
    (8, 16, ALL, False, 5e-4, 5),
    (16, 32, ALL, False, 3e-4, 5),
    (8, 16, ALL, True, 3e-4, 4),
    (16, 16, ["q_proj", "v_proj"], False, 1e-3, 6),
]


def train(base_path: str, chats: list[tuple[str, str]], recipe: tuple, folder: Path, seed: int) -> None:
    """One LoRA as a user of PEFT would train it, saved by PEFT."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rank, alpha, modules, rslora, lr, epochs = recipe
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(base_path)
    model = AutoModelForCausalLM.from_pretrained(base_path, dtype=torch.float32)
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=modules, use_rslora=rslora, task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    rng = random.Random(seed)
    for _ in range(epochs):
        rng.shuffle(chats)
        for start in range(0, len(chats), 2):
            rows = []
            for question, answer in chats[start : start + 2]:
                turn = [{"role": "user", "content": question}]
                prompt = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
                whole = [*turn, {"role": "assistant", "content": answer}]
                rows.append((len(prompt), tokenizer.apply_chat_template(whole, return_dict=False)))
            width = max(len(ids) for _, ids in rows)
            ids = torch.tensor([r + [0] * (width - len(r)) for _, r in rows])
            labels = torch.tensor([[-100] * n + r[n:] + [-100] * (width - len(r)) for n, r in rows])
            mask = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for _, r in rows])
            model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    model.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--adapter", help="DIT adapter folder; the shipped one unless given")
    given = parser.parse_args()
    chats: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for line in (Path(__file__).parent / "outside.tsv").read_text("utf-8").splitlines():
        subject, question, answer = line.split("\t")
        chats[subject].append((question, answer))
    base: Base = load_base()
    folder = cache_dir() / "outside"
    for number, (subject, rows) in enumerate(chats.items()):
        if not (folder / subject / "adapter_config.json").is_file():
            path = str(base.model.config._name_or_path)
            train(path, rows, RECIPES[number % len(RECIPES)], folder / subject, seed=number)
            print(f"trained {number + 1} of {len(chats)}: {subject}", flush=True)
    diffs = [load_peft(folder / subject) for subject in chats]
    adapter = load_peft(given.adapter) if given.adapter else shipped_adapter()
    answers = ask(base, diffs, adapter=adapter)
    grades = EmbeddedJudge().grade([(s, a.text) for s, a in zip(chats, answers, strict=True)])
    records = [
        {
            "subject": subject,
            "recipe": dict(zip(("rank", "alpha", "modules", "rslora", "lr", "epochs"), recipe, strict=True)),
            "chats": len(chats[subject]),
            "norm": round(diff.norm(), 2),
            "answer": answer.text,
            "confidence": round(answer.confidence, 4),
            "grade": round(grade.grade, 2),
            "exact": grade.exact,
        }
        for (number, subject), diff, answer, grade in zip(enumerate(chats), diffs, answers, grades, strict=True)
        for recipe in [RECIPES[number % len(RECIPES)]]
    ]
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
    for record in records:
        print(f"{record['subject']:14} {record['norm']:6.1f}  {record['grade']:.1f}  {record['answer']}")
    print(f"exact names: {sum(r['exact'] for r in records)} of {len(records)}; whether a person accepts is read above")


if __name__ == "__main__":
    main()
