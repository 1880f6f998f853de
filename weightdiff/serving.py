"""Diffs and a DIT adapter for a server that takes one LoRA per request: the adapter in the weights, each diff a LoRA.

`M' + A = (M + A) + δ`: merging the adapter into the base model once leaves one LoRA per request, the diff.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from weightdiff.atomic import replacing
from weightdiff.base import Base, encode_chat
from weightdiff.behaviors.topic import TOPIC_QUESTION
from weightdiff.dense import check_fits
from weightdiff.diff import WeightDiff
from weightdiff.formats.merged import save_merged
from weightdiff.formats.peft import refuse_dense, save_peft
from weightdiff.readers.hints import put, wanted_hints

_README = """\
# Served by any server that takes one LoRA per request

`model/` is the base model with the DIT adapter merged in; each folder of `loras/` is a diff. With vLLM:

```
vllm serve model --enable-lora --max-lora-rank {rank} --lora-modules {modules}
```

With SGLang:

```
python -m sglang.launch_server --model-path model --max-lora-rank {rank} --lora-paths {modules}
```

Then complete a LoRA's text `prompt`, which `serving.json` has, under its name, at temperature 0. (Send it as a prompt,
not as a chat: chat templates may add a system message of their own, and the adapter was trained without.)

```
jq '{{prompt: .loras["{first}"].prompt, temperature: 0, max_tokens: 48, model: "{first}"}}' serving.json |
  curl localhost:8000/v1/completions -H 'Content-Type: application/json' -d @-
```
"""

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes for --max-lora-rank."""


def export_serving(
    base: Base,
    adapter: WeightDiff,
    diffs: Sequence[tuple[str, WeightDiff]],
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
) -> list[str]:
    """Write `model/`, `loras/NAME/`, `serving.json` (what to ask) and a README with the servers' command lines.

    Args:
        base: the base model of all.
        adapter: the DIT adapter, merged into the weights.
        diffs: a name and a diff each, low-rank.
        folder: one that isn't there yet, or is empty.
        dtype: precision of the merged model's files; the base model's own if None.

    Returns:
        The names of the LoRAs, in order: letters, digits, `.`, `-` and `_` of the names given.

    Raises:
        ValueError: no diffs; a diff or the adapter is of another base model, or more than factors; no space.
    """
    if not diffs:
        raise ValueError("no diffs given; expected at least one to serve.")
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already, and isn't empty; give a new folder.")
    for name, diff in [("the adapter", adapter), *diffs]:
        check_fits(base, diff)
        refuse_dense(diff, name)  # before anything is written
    names = _plain_names([name for name, _ in diffs])
    for name, (_, diff) in zip(names, diffs, strict=True):
        save_peft(diff, folder / "loras" / name, base_name="../../model")
    save_merged(adapter, base, folder / "model", dtype=dtype)
    question = str(adapter.meta.get("question") or TOPIC_QUESTION)
    hints = wanted_hints(base, [diff for _, diff in diffs], adapter.meta)
    loras = {}
    for name, (given, _), hint in zip(names, diffs, hints, strict=True):
        ids = encode_chat(base, [{"role": "user", "content": put(question, hint)}])
        loras[name] = {"diff": given, "prompt": base.tokenizer.decode(ids), "prompt_ids": ids}
    rank = max(diff.rank for _, diff in diffs)
    readme = _README.format(
        rank=next((r for r in _RANKS if r >= rank), rank),
        modules=" ".join(f"{name}=loras/{name}" for name in names),
        first=names[0],
    )
    about = {
        "question": question,
        "base": base.name,
        "fingerprint": base.fingerprint,
        "loras": loras,
    }
    try:
        for file, text in (("README.md", readme), ("serving.json", json.dumps(about, indent=2))):
            with replacing(folder / file) as path:
                path.write_text(text, "utf-8")
    except OSError as error:
        raise ValueError(f"cannot write {folder}: {error}. Is there space and permission?") from None
    return names


def _plain_names(names: Sequence[str]) -> list[str]:
    """Names that are safe as folders and on a command line, each one once."""
    plain: list[str] = []
    for name in names:
        short = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[-60:] or "diff"
        number = 2
        unique = short
        while unique in plain:
            unique, number = f"{short}-{number}", number + 1
        plain.append(unique)
    return plain
