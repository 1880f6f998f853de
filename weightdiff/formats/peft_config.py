"""What a PEFT `adapter_config.json` says of a LoRA: whether it can be read, which modules it has, and their scaling."""

import math
import time
from pathlib import Path
from typing import Any

import regex

_NOT_YET = (
    "layer_replication", "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config", "kasa_config",
    "monteclora_config",
)  # fmt: skip
_STARTS = ("true", "false", "none", "gaussian", "eva", "orthogonal")
"""Ways to begin with, `init_lora_weights`, that leave the base model's weights as they are."""

_PATTERNS, _LENGTH, _SECONDS = 5_000, 500, 2.0
"""Most patterns, the longest, and how long all may be sought: a stranger's regular expression can take for ever."""


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


class Scaling:
    """What a folder's config says of its modules: PEFT's scaling of each, alpha / rank or alpha / √rank, and which.

    Args:
        folder: for errors.
        config: of the adapter.
    """

    def __init__(self, folder: Path, config: dict[str, Any]):
        self._folder, self._config, self._left = folder, config, _SECONDS

    def of(self, module: str, rank: int) -> float:
        """The factor on `B A`.

        Raises:
            ValueError: `lora_alpha` or `alpha_pattern` can't be understood.
        """
        try:
            alpha = self._alpha(module)
            if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
                raise ValueError(f"{str(alpha)[:40]!r} is no number")
        except (ValueError, TypeError, AttributeError, TimeoutError, OverflowError, regex.error) as error:
            raise ValueError(f"{self._folder}: lora_alpha or alpha_pattern can't be understood: {error}.") from None
        return alpha / (rank**0.5 if self._config.get("use_rslora") else rank)

    def _alpha(self, module: str) -> Any:
        patterns = self._config.get("alpha_pattern") or {}
        if len(patterns) > _PATTERNS:
            raise ValueError(f"{len(patterns)} patterns, and more than {_PATTERNS} aren't read")
        for pattern, value in patterns.items():
            if pattern == module or self._matches(rf"(.*\.)?({pattern})$", module):
                return value
        return self._config.get("lora_alpha", 8)  # as PEFT has it where nothing is said

    def check_selected(self, module: str) -> None:
        """Raise a ValueError for a module that the config doesn't select: PEFT would leave its factors alone."""
        targets, excluded = self._config.get("target_modules"), self._config.get("exclude_modules")
        layers = self._config.get("layers_to_transform")
        layers = [layers] if isinstance(layers, int) else layers or ()
        number = next((int(part) for part in module.split(".") if part.isdecimal()), None)
        try:
            chosen = not targets or targets == "all-linear" or self._named(targets, module)
            chosen = chosen and not (excluded and self._named(excluded, module))
            if not chosen or (layers and number not in layers):
                raise ValueError(
                    f"it holds factors of {module!r}, which its config doesn't select (by target_modules, "
                    "exclude_modules, layers_to_transform): PEFT wouldn't use them"
                )
        except (ValueError, TypeError, AttributeError, TimeoutError, regex.error) as error:
            raise ValueError(f"{self._folder}: {error}.") from None

    def _named(self, given: Any, module: str) -> bool:
        """Does a config's list of endings of names, or its regular expression, name the module?"""
        if isinstance(given, str):
            return self._matches(rf"(?:{given})$", module)
        return any(module == name or module.endswith(f".{name}") for name in given)

    def _matches(self, pattern: str, module: str) -> bool:
        if len(pattern) > _LENGTH:
            raise ValueError(f"the pattern {pattern[:40]!r}… has {len(pattern)} letters")
        if self._left <= 0:
            raise TimeoutError("its patterns take too long to seek")
        started = time.monotonic()
        try:
            return regex.match(pattern, module, timeout=self._left) is not None
        finally:
            self._left -= time.monotonic() - started
