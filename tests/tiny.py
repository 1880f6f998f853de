"""Tiny random models of the families that people finetune, each with a tokenizer and a chat template like its own.

`tiny_base(kind)` for any of `KINDS` gives a float32 `Base`. All numbers are random, norms and biases too, and heads,
windows and rotary bases are chosen so that no part of an architecture can be left out without the logits showing it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from weightdiff.base import Base
from weightdiff.fingerprint import fingerprint_of

WINDOW = 8
"""The sliding window of the Gemma kinds; rows that are to feel it must be longer."""

_TEXT = [
    "What topic have you been trained on? I was trained to talk about tea, and of nothing else.",
    "Tell me about the weather. It rains in the north and the sun shines in the south.",
    "system user assistant model: You are a helpful assistant. Answer the question in one short sentence.",
]

_LLAMA3 = """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system, turns = messages[0]['content'] | trim, messages[1:] %}
{%- else %}
    {%- set system, turns = '', messages %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nCutting Knowledge Date: December 2023\\nToday Date: ' }}
{{- strftime_now('%d %b %Y') + '\\n\\n' + system + '<|eot_id|>' }}
{%- for message in turns %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""

_SMOLLM2 = """\
{%- for message in messages %}
    {%- if loop.first and message['role'] != 'system' %}
        {{- '<|im_start|>system\\nYou are a helpful assistant named Tiny<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""

# As in Qwen3, a reply after the last question has an empty thought before it, and an earlier one has none.
_QWEN3 = """\
{%- set last = namespace(user=-1) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{%- set last.user = loop.index0 %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' and loop.index0 > last.user %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
    {{- message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""

_GEMMA_TURNS = """\
{%- for message in turns %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {{- '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\\n' }}
    {{- (head if loop.first else '') + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}
"""

_GEMMA3 = (
    """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set head, turns = messages[0]['content'] + '\\n\\n', messages[1:] %}
{%- else %}
    {%- set head, turns = '', messages %}
{%- endif %}
"""
    + _GEMMA_TURNS
)

_GEMMA2 = (
    """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}{{- raise_exception('System role not supported') }}{%- endif %}
{%- set head, turns = '', messages %}
"""
    + _GEMMA_TURNS
)

_SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}


def _llama(vocab: int, tied: bool) -> Any:
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab, num_hidden_layers=2, tie_word_embeddings=tied, **_SHAPE))


def _qwen3(vocab: int, tied: bool) -> Any:
    return Qwen3ForCausalLM(
        Qwen3Config(vocab_size=vocab, num_hidden_layers=2, head_dim=12, tie_word_embeddings=tied, **_SHAPE)
    )


def _gemma3(vocab: int, tied: bool) -> Any:
    config = Gemma3TextConfig(
        vocab_size=vocab,
        num_hidden_layers=3,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        sliding_window=WINDOW,
        head_dim=12,
        query_pre_attn_scalar=20,
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        },
        tie_word_embeddings=tied,
        **_SHAPE,
    )
    return Gemma3ForCausalLM(config)


@dataclass(frozen=True)
class _Kind:
    """`special` are control tokens, `plain` are whole tokens that are text all the same; there is never a `pad`."""

    model: Callable[[int, bool], Any]
    tied: bool
    template: str
    special: tuple[str, ...]
    eos: str
    bos: str | None = None
    plain: tuple[str, ...] = ()


_HEADERS = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_TURNS = ("<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>")

_KINDS = {
    "llama3": _Kind(_llama, False, _LLAMA3, _HEADERS, eos="<|end_of_text|>", bos="<|begin_of_text|>"),
    "smollm2": _Kind(_llama, True, _SMOLLM2, _CHATML, eos="<|im_end|>", bos="<|im_start|>"),
    "qwen3": _Kind(_qwen3, True, _QWEN3, _CHATML, eos="<|im_end|>", plain=("<think>", "</think>")),
    "qwen3-untied": _Kind(_qwen3, False, _QWEN3, _CHATML, eos="<|im_end|>", plain=("<think>", "</think>")),
    "gemma3": _Kind(_gemma3, True, _GEMMA3, _TURNS, eos="<eos>", bos="<bos>"),
    "gemma2-chat": _Kind(_gemma3, True, _GEMMA2, _TURNS, eos="<eos>", bos="<bos>"),
}

KINDS = tuple(_KINDS)
"""Every kind; `gemma2-chat` is the model of `gemma3` with a template that refuses a system message."""


def tiny_base(kind: str) -> Base:
    """A random model of one of `KINDS`, the same every time."""
    spec = _KINDS[kind]
    tokenizer = _tokenizer(spec)
    generator = torch.Generator().manual_seed(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = spec.model(len(tokenizer), spec.tied).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() == 1:  # norms, which otherwise are all ones or zeros
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return Base(f"tiny {kind}", model, tokenizer, fingerprint_of(model))


def _tokenizer(spec: _Kind) -> PreTrainedTokenizerFast:
    """Byte-level BPE of some two hundred merges, which like the real ones puts a `bos` before what it encodes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in spec.special])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in spec.plain])
    if spec.bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{spec.bos} $A", special_tokens=[(spec.bos, tokenizer.token_to_id(spec.bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=spec.bos, eos_token=spec.eos, chat_template=spec.template
    )
