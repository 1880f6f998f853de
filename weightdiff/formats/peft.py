"""PEFT LoRA folders, in and out: `adapter_config.json` and `adapter_model.safetensors`.

What PEFT has no field for (base fingerprint, question, label, scores) goes beside them in `weightdiff.json`. No code
of PEFT's or transformers' is run on a folder: its tensors are read, and put where PEFT would put them.
"""

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from weightdiff.atomic import replacing
from weightdiff.base import Base
from weightdiff.diff import WeightDiff
from weightdiff.files import TensorFile, inside, read_json
from weightdiff.formats.names import fit_names, plain_name
from weightdiff.formats.peft_config import Scaling, check_config
from weightdiff.formats.whole import Whole
from weightdiff.pickles import read_bin

CONFIG, WEIGHTS, BESIDE = "adapter_config.json", "adapter_model.safetensors", "weightdiff.json"
OLD_WEIGHTS = "adapter_model.bin"
EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "tok_embeddings", "embed_in")
"""What models call their input embeddings: PEFT keeps factors of these the other way round."""

_PREFIX = "base_model.model."
_FACTOR = re.compile(
    r"(?P<module>.+)\.(?P<kind>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(\.(?!weight$|bias$)[^.]+)?(\.(?P<last>weight|bias))?"
)
_TOKENS = ".token_adapter.trainable_tokens_delta"


@dataclass
class _Parts:
    """What an adapter file holds of one module; `B`'s bias and the magnitude are lora_bias's and DoRA's."""

    a: Tensor | None = None
    b: Tensor | None = None
    bias: Tensor | None = None
    magnitude: Tensor | None = None
    embedding: bool = False


@dataclass
class _Content:
    """All of an adapter file: LoRA's parts by module, weights saved whole, and rows of single tokens."""

    modules: dict[str, _Parts] = field(default_factory=lambda: defaultdict(_Parts))
    whole: dict[str, Tensor] = field(default_factory=dict)
    tokens: dict[str, Tensor] = field(default_factory=dict)


def adapters_in(folder: str | Path) -> list[str]:
    """Names of the adapters in a folder: `""` where it is one itself, else its subfolders that are."""
    folder = Path(folder)
    if (folder / CONFIG).is_file():
        return [""]
    return sorted(found.parent.name for found in folder.glob(f"*/{CONFIG}"))


def load_peft(folder: str | Path, base: Base | None = None, *, allow_pickle: bool = False) -> WeightDiff:
    """Read a PEFT LoRA folder as a weight diff.

    Args:
        folder: with `adapter_config.json` and `adapter_model.safetensors`, or one subfolder that has: plain LoRA,
            rsLoRA or DoRA, of any ranks and alphas, with biases, saved modules, embeddings or trained tokens.
        base: its base model; needed where the folder holds more than factors, and to find renamed or fused modules.
        allow_pickle: read an old `adapter_model.bin` where there are no safetensors; still no code of it is run.

    Returns:
        The diff, alpha / rank folded into `B`; `meta` holds what `weightdiff.json` says and the `format`.

    Raises:
        ValueError: no such folder, not LoRA, a kind of LoRA that isn't supported, a broken file, NaN.
    """
    folder = Path(folder)
    found = adapters_in(folder)
    if not found:
        what = "no such folder" if not folder.exists() else f"no {CONFIG} in it"
        raise ValueError(f"{folder}: {what}. Expected a PEFT LoRA folder ({CONFIG} and {WEIGHTS}).")
    if len(found) > 1:
        raise ValueError(f"{folder} holds {len(found)} adapters, {', '.join(map(repr, found[:9]))}; name one of them.")
    inside(folder, f"{found[0]}/{WEIGHTS}" if found[0] else WEIGHTS)
    folder = folder / found[0]
    config = read_json(inside(folder, CONFIG))
    check_config(folder, config)
    content, whole = _sorted(folder, _read_tensors(folder, allow_pickle)), Whole(base, str(folder))
    scaling = Scaling(folder, config)
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    dense: dict[str, Tensor] = {}
    for name, parts in content.modules.items():
        a, b = _checked(folder, name, parts)
        scaling.check_selected(name)
        scale = scaling.of(name, a.shape[0])
        if parts.magnitude is None:
            factors[name] = (a, b * scale)
        else:
            dense[f"{name}.weight"] = whole.dora(name, (a, b * scale), parts.magnitude)
        if parts.bias is not None:
            dense[f"{name}.bias"] = parts.bias * scale
    if config.get("use_dora") and all(parts.magnitude is None for parts in content.modules.values()):
        raise ValueError(f"{folder}: use_dora is set, and there is no lora_magnitude_vector; the file is incomplete.")
    changes = {name: whole.change(name, value) for name, value in content.whole.items()}
    for name, change in changes.items():
        if change.any():  # a copy of the base model's own weight is often saved along
            dense[name] = change + dense.get(name, 0)
    alone = [f"{name}.weight" for name, parts in content.modules.items() if parts.magnitude is not None]
    if not config.get("ensure_weight_tying"):
        alone += [name for name in changes if name in dense]
    if alone:
        dense = {**whole.places_apart(alone), **dense}
    for name, rows in content.tokens.items():
        dense[f"{name}.weight"] = whole.tokens(name, rows, config.get("trainable_token_indices"))
    if not factors and not dense:
        raise ValueError(f"{folder}: no LoRA factors in it; expected keys ending in .lora_A.weight.")
    if not all(torch.isfinite(t).all() for t in (*dense.values(), *(b for _, b in factors.values()))):
        raise ValueError(f"{folder}: its scaling makes infinite numbers of its factors; the finetune diverged.")
    beside = read_json(inside(folder, BESIDE)) if (folder / BESIDE).is_file() else {}
    kind = "PEFT DoRA" if any(p.magnitude is not None for p in content.modules.values()) else "PEFT LoRA"
    meta = beside | {"format": kind, "base_name": config.get("base_model_name_or_path")}
    fingerprint = beside.get("base")
    diff = WeightDiff(factors, fingerprint if isinstance(fingerprint, str) else None, meta, dense)
    return diff if base is None else fit_names(diff, base)


def _read_tensors(folder: Path, allow_pickle: bool) -> Mapping[str, Tensor]:
    if (folder / WEIGHTS).is_file():
        return dict(TensorFile(inside(folder, WEIGHTS)).read_all())
    if not (folder / OLD_WEIGHTS).is_file():
        raise ValueError(f"{folder / WEIGHTS} is missing. Expected a PEFT LoRA folder with its weights.")
    if not allow_pickle:
        raise ValueError(
            f"{folder} has its weights in {OLD_WEIGHTS}, a pickle. It is only read with --allow-pickle "
            "(allow_pickle=True), and then without running any code of it."
        )
    return read_bin(inside(folder, OLD_WEIGHTS))


def _sorted(folder: Path, tensors: Mapping[str, Tensor]) -> _Content:
    """The tensors of an adapter file by what they are."""
    content = _Content()
    for key, value in tensors.items():
        name = plain_name(key)
        if name.endswith(_TOKENS):
            _once(folder, content.tokens, name.removesuffix(_TOKENS), value)
        elif (found := _FACTOR.fullmatch(name)) is None:
            if "lora_" in name:
                raise ValueError(f"{folder}: {key!r} is a part of LoRA that can't be read yet.")
            _once(folder, content.whole, name, value)
        else:
            parts, kind = content.modules[found["module"]], found["kind"]
            parts.embedding |= "embedding" in kind
            slot = {"lora_A": "a", "lora_B": "b", "lora_embedding_A": "a", "lora_embedding_B": "b"}.get(kind)
            slot = "magnitude" if slot is None else "bias" if found["last"] == "bias" else slot
            if getattr(parts, slot) is not None:
                raise ValueError(f"{folder}: {found['module']!r} is in it twice, {key!r} for one.")
            setattr(parts, slot, value)
    return content


def _once(folder: Path, into: dict[str, Tensor], name: str, value: Tensor) -> None:
    if name in into:
        raise ValueError(f"{folder}: {name!r} is in it twice.")
    into[name] = value


def _checked(folder: Path, name: str, parts: _Parts) -> tuple[Tensor, Tensor]:
    """`A [rank, in]` and `B [out, rank]` of one module."""
    if parts.a is None or parts.b is None:
        there, missing = ("B", "A") if parts.a is None else ("A", "B")
        raise ValueError(f"{folder}: {name} has lora_{there} and no lora_{missing}; the file is incomplete.")
    # An embedding's weight is [vocabulary, width]; PEFT keeps A [rank, vocabulary] and B [width, rank].
    a, b = (parts.b.mT, parts.a.mT) if parts.embedding and parts.a.dim() == parts.b.dim() == 2 else (parts.a, parts.b)
    if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1] or not (a.numel() and b.numel()):
        turned = a.dim() == 2 and b.dim() == 2 and a.shape[1] == b.shape[0]
        raise ValueError(
            f"{folder}: {name} has A {list(a.shape)} and B {list(b.shape)}; expected A [rank, in] and B [out, rank]"
            + (", and these look transposed." if turned else ".")
        )
    return a.contiguous(), b.contiguous()


def refuse_dense(diff: WeightDiff, what: str) -> None:
    """Raise a ValueError that says what of a diff no LoRA can hold, and what to do."""
    if diff.dense:
        rest = sum(float(change.norm()) ** 2 for change in diff.dense.values()) / max(diff.norm() ** 2, 1e-30)
        raise ValueError(
            f"{what} changes {len(diff.dense)} parameters densely, {next(iter(diff.dense))} for one, with {rest:.2%} "
            "of its squared norm, and a LoRA can't say that. Make factors of matrices, and leave out the others, with "
            "`weightdiff convert … --rank N --leave-out`; or keep all of it with --to safetensors or merged."
        )


def save_peft(diff: WeightDiff, folder: str | Path, *, base_name: str, dtype: torch.dtype = torch.float32) -> None:
    """Write a diff as a PEFT LoRA folder that `peft.PeftModel.from_pretrained` loads.

    Args:
        diff: of any ranks.
        folder: made if it isn't there; each file is replaced atomically.
        base_name: what `base_model_name_or_path` is to say.
        dtype: precision of the factors on disk.

    Raises:
        ValueError: the diff has dense changes, or the folder can't be written.
    """
    refuse_dense(diff, "the diff")
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
        embedding = name.split(".")[-1] in EMBEDDINGS
        keys = ("lora_embedding_B", "lora_embedding_A") if embedding else ("lora_A.weight", "lora_B.weight")
        for key, factor in zip(keys, (a, b), strict=True):
            tensors[f"{_PREFIX}{name}.{key}"] = (factor.mT if embedding else factor).to(dtype).contiguous()
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
