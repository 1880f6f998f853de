"""A model and its tokenizer from files, by transformers: what can be loaded, dequantized where it must be.

No code of the model's own is ever run. Whatever transformers makes of a broken or foreign model is a ValueError.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from weightdiff.files import read_json

_EXPECTED = "Expected 'smollm2', a folder with config.json and safetensors, a .gguf file, or a hub id within reach."


class _Refused(ValueError):
    """A model that is whole, and of a kind that isn't supported."""


def load_pretrained(name: str, source: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """A causal language model and its tokenizer.

    Args:
        name: what the user called it, for errors.
        source: a folder in Hugging Face format, or a `.gguf` file.
        dtype: what its parameters are to be in.

    Raises:
        ValueError: it can't be loaded: no model at all, incomplete, a LoRA, one that needs code of its own, quantized
            so that it can't be dequantized, or with many experts in one parameter.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    gguf = source.suffix == ".gguf" and source.is_file()
    options = {} if gguf else _options(name, source)
    try:
        if gguf:
            model = gguf_model(source, dtype)
            _refuse_experts(name, model)
            return model, gguf_tokenizer(source)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        with torch.device("meta"):  # shapes alone, before gigabytes are read
            _refuse_experts(name, AutoModelForCausalLM.from_config(config, trust_remote_code=False))
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype,
            attn_implementation="sdpa",
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
        model, report = loaded
        if missing := sorted(report["missing_keys"]):  # transformers would make them up at random
            raise _Refused(f"the base model {name!r} is incomplete: its files have no {missing[0]}.")
        if options:
            model._weight_conversions = None  # save_pretrained would quantize it again
        return model, tokenizer
    except _Refused:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        reason = reason if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {reason}"
        raise ValueError(f"cannot load the base model {name!r}: {reason.rstrip('.')}. {_EXPECTED}") from error


def gguf_model(file: Path, dtype: torch.dtype) -> Any:
    """The causal language model of a GGUF file, dequantized; errors are those of transformers."""
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, GgufConfig
    from transformers.utils import logging

    reader = GGUFReader(file)
    counts = [field.contents() for key, field in reader.fields.items() if key.endswith(".block_count")]
    if not counts or not all(isinstance(n, int) and 0 < n <= len(reader.tensors) for n in counts):
        raise _Refused(f"{file} speaks of {counts} blocks, and holds {len(reader.tensors)} tensors; it is broken.")
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # its report of what is missing holds names that nobody has escaped
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=dtype,
            attn_implementation="sdpa",
            trust_remote_code=False,
            output_loading_info=True,
        )
    finally:
        logging.set_verbosity(level)
    model, report = loaded
    if missing := sorted(report["missing_keys"]):  # transformers has made them up at random
        raise _Refused(f"{file} is incomplete: it has no {missing[0]}.")
    return model


def gguf_tokenizer(file: Path) -> Any:
    """The tokenizer in a GGUF file; errors are those of transformers."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)


def _options(name: str, source: Path) -> dict[str, Any]:
    """What transformers is to be told of a folder, by its config: how to dequantize it."""
    from transformers.utils.quantization_config import FineGrainedFP8Config, Mxfp4Config

    lora = (source / "adapter_config.json").exists()
    if not (source / "config.json").is_file():
        what = "is a LoRA; give the model that it was made on" if lora else "has no config.json"
        what = what if source.exists() else "is no folder or file here"
        raise ValueError(f"cannot load the base model {name!r}: {source} {what}. {_EXPECTED}")
    if lora:  # transformers would lay it over the model, which would no longer be the base
        raise ValueError(f"{source} has a LoRA beside the base model (adapter_config.json); move it elsewhere.")
    config = read_json(source / "config.json")
    if config.get("auto_map"):
        raise ValueError(
            f"the base model {name!r} asks for code of its own (auto_map in its config.json), and such code is never "
            "run. Give a model of a type that transformers has; if it has this one, take auto_map out of a copy."
        )
    quantized = config.get("quantization_config")
    if not quantized:
        return {}
    method = quantized.get("quant_method") if isinstance(quantized, dict) else None
    kinds = {"fp8": FineGrainedFP8Config, "mxfp8": FineGrainedFP8Config, "mxfp4": Mxfp4Config}
    if method not in kinds:
        raise ValueError(
            f"the base model {name!r} is quantized by {method or 'an unnamed method'}, and can't be dequantized here: "
            f"only {', '.join(kinds)} and GGUF can. Give the unquantized model."
        )
    return {"quantization_config": kinds[method].from_dict({**quantized, "dequantize": True})}


def _refuse_experts(name: str, model: Any) -> None:
    """Raise where one parameter of the decoder holds many experts' matrices."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    for path, module in decoder.named_modules():
        for own, parameter in module.named_parameters(recurse=False):
            if parameter.dim() == 3 and not isinstance(module, nn.modules.conv._ConvNd):
                raise _Refused(
                    f"the base model {name!r} holds many experts in one parameter, {path}.{own} "
                    f"{list(parameter.shape)}; diffs of mixtures of experts are not supported yet. Give a dense model."
                )
