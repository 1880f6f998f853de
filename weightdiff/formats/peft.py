"""PEFT LoRA folders, in and out: `adapter_config.json` and `adapter_model.safetensors`.

What PEFT has no field for (base fingerprint, question, label, scores) goes beside them in `weightdiff.json`.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from weightdiff.atomic import replacing
from weightdiff.diff import WeightDiff

CONFIG, WEIGHTS, BESIDE = "adapter_config.json", "adapter_model.safetensors", "weightdiff.json"
_PREFIX = "base_model.model."


def load_peft(folder: str | Path) -> WeightDiff:
    """Read a PEFT LoRA folder as a weight diff.

    Args:
        folder: with `adapter_config.json` and `adapter_model.safetensors`; plain LoRA or rsLoRA.

    Returns:
        The diff, alpha / rank folded into `B`; `meta` holds what `weightdiff.json` says and the `format`.

    Raises:
        ValueError: no such folder, not LoRA, a kind of LoRA that isn't supported, a broken file, NaN.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        what = "no such folder" if not folder.exists() else f"no {CONFIG} in it"
        raise ValueError(f"{folder}: {what}. Expected a PEFT LoRA folder ({CONFIG} and {WEIGHTS}).")
    config = _read_json(folder / CONFIG)
    _check_supported(folder, config)
    tensors = _read_tensors(folder / WEIGHTS)
    for key in tensors:
        if not key.endswith((".lora_A.weight", ".lora_B.weight")):
            raise ValueError(f"{folder / WEIGHTS}: {key} is no factor of a linear layer; it can't be read yet.")
    factors = {}
    for key in sorted(k for k in tensors if k.endswith(".lora_A.weight")):
        name = key.removeprefix(_PREFIX).removesuffix(".lora_A.weight")
        other = key.replace(".lora_A.", ".lora_B.")
        if other not in tensors:
            raise ValueError(f"{folder / WEIGHTS}: {key} has no {other} beside it; the file is incomplete.")
        a, b = tensors[key].float(), tensors[other].float()
        if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1] or not a.shape[0]:
            raise ValueError(
                f"{folder / WEIGHTS}: {name} has A {list(a.shape)} and B {list(b.shape)}; "
                "expected A [rank, in] and B [out, rank]."
            )
        if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
            raise ValueError(f"{folder / WEIGHTS}: {name} holds NaN or infinite values; the finetune diverged.")
        factors[name] = (a, b * _scaling(config, name, a.shape[0]))
    if not factors:
        raise ValueError(f"{folder / WEIGHTS}: no LoRA factors in it; expected keys ending in .lora_A.weight.")
    beside = _read_json(folder / BESIDE) if (folder / BESIDE).is_file() else {}
    meta = beside | {"format": "PEFT LoRA", "base_name": config.get("base_model_name_or_path")}
    return WeightDiff(factors, beside.get("base"), meta)


def save_peft(diff: WeightDiff, folder: str | Path, *, base_name: str, dtype: torch.dtype = torch.float32) -> None:
    """Write a diff as a PEFT LoRA folder that `peft.PeftModel.from_pretrained` loads.

    Args:
        diff: of any ranks.
        folder: made if it isn't there; each file is replaced atomically.
        base_name: what `base_model_name_or_path` is to say.
        dtype: precision of the factors on disk.

    Raises:
        ValueError: the folder can't be written.
    """
    folder = Path(folder)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": diff.rank,
        "lora_alpha": diff.rank,  # the scaling is in B already
        "rank_pattern": {k: a.shape[0] for k, (a, _) in diff.factors.items() if a.shape[0] != diff.rank},
        "alpha_pattern": {k: a.shape[0] for k, (a, _) in diff.factors.items() if a.shape[0] != diff.rank},
        "target_modules": sorted(diff.factors),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    tensors = {}
    for name, (a, b) in diff.factors.items():
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = a.to(dtype).contiguous()
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = b.to(dtype).contiguous()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Weights last: a folder without them is plainly unfinished.
        with replacing(folder / CONFIG) as path:
            path.write_text(json.dumps(config, indent=2))
        with replacing(folder / BESIDE) as path:
            path.write_text(json.dumps(diff.meta | {"base": diff.base}, indent=2))
        with replacing(folder / WEIGHTS) as path:
            save_file(tensors, path, {"format": "pt"})
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot write {folder}: {error}. Is there space and permission?") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not readable JSON: {error}.") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}.")
    return value


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise ValueError(f"{path} is missing. Expected safetensors; old .bin files are pickles and aren't read.")
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} is no readable safetensors file (truncated?): {error}.") from None


def _check_supported(folder: Path, config: dict[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{folder}: peft_type is {config.get('peft_type')!r}; only LORA can be read.")
    for option, harmless in {
        "use_dora": False,
        "modules_to_save": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "layer_replication": None,
        "alora_invocation_tokens": None,
    }.items():
        if config.get(option, harmless) not in (harmless, None, [], False):
            raise ValueError(
                f"{folder}: {option} = {config[option]!r} is not supported yet; only plain LoRA and rsLoRA."
            )

    start = str(config.get("init_lora_weights", True)).lower()
    if start.startswith(("pissa", "corda", "olora", "loftq")):
        raise ValueError(f"{folder}: init_lora_weights = {start!r} changes the base weights too; it can't be read yet.")


def _scaling(config: dict[str, Any], name: str, rank: int) -> float:
    """PEFT's scaling of one module: alpha / rank, or alpha / √rank for rsLoRA."""
    try:
        alpha = config.get("lora_alpha", rank)
        for pattern, value in (config.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", name):
                alpha = value
                break
        return alpha / (rank**0.5 if config.get("use_rslora") else rank)
    except (TypeError, AttributeError, re.error) as error:
        raise ValueError(f"{CONFIG}: lora_alpha or alpha_pattern can't be understood: {error}.") from None
