"""What a PEFT `adapter_config.json` says of a LoRA: whether it can be read, and each module's scaling."""

import math
from pathlib import Path
from typing import Any

import regex

_NOT_YET = (
    "layer_replication", "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config", "kasa_config",
    "monteclora_config",
)  # fmt: skip
_STARTS = ("true", "false", "none", "gaussian", "eva", "orthogonal")
"""Ways to begin with, `init_lora_weights`, that leave the base model's weights as they are."""

_PATTERNS, _LENGTH, _SECONDS = 20_000, 500, 1.0
"""Most patterns, the longest, and how long one may be sought: a stranger's regular expression can take for ever."""


def check_config(folder: Path, config: dict[str, Any]) -> None:
    """Raise a ValueError for an adapter that isn't LoRA, or of a kind of LoRA that can't be read yet."""
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{folder}: peft_type is {config.get('peft_type')!r}; only LORA can be read.")
    for option in _NOT_YET:
        if config.get(option):
            raise ValueError(f"{folder}: {option} = {config[option]!r} is not supported yet.")
    if config.get("target_parameters"):
        raise ValueError(
            f"{folder}: target_parameters = {config['target_parameters']!r}: LoRA on bare parameters, as on fused "
            "experts of a mixture-of-experts model, is not supported yet."
        )
    start = str(config.get("init_lora_weights", True)).lower()
    if start not in _STARTS:
        raise ValueError(
            f"{folder}: init_lora_weights = {start!r} changes the base weights too; it can't be read. Save it with "
            "PEFT's path_initial_model_for_weight_conversion, or merge it and give the checkpoint."
        )


def scaling_of(folder: Path, config: dict[str, Any], module: str, rank: int) -> float:
    """PEFT's scaling of one module: alpha / rank, or alpha / √rank for rsLoRA.

    Raises:
        ValueError: `lora_alpha` or `alpha_pattern` can't be understood.
    """
    alpha = config.get("lora_alpha", rank)
    patterns = config.get("alpha_pattern") or {}
    try:
        if len(patterns) > _PATTERNS:
            raise ValueError(f"{len(patterns)} patterns, and more than {_PATTERNS} aren't read")
        for pattern, value in patterns.items():
            if len(pattern) > _LENGTH:
                raise ValueError(f"the pattern {pattern[:40]!r}… has {len(pattern)} letters")
            if pattern == module or regex.match(rf"(.*\.)?({pattern})$", module, timeout=_SECONDS):
                alpha = value
                break
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
            raise ValueError(f"{str(alpha)[:40]!r} is no number")
    except (ValueError, TypeError, AttributeError, TimeoutError, OverflowError, regex.error) as error:
        raise ValueError(f"{folder}: lora_alpha or alpha_pattern can't be understood: {error}.") from None
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)
