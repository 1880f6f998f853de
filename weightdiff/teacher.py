"""Conversations as rows of tokens, and what the unchanged base model makes of them: computed once for all diffs."""

from collections.abc import Sequence
from itertools import takewhile
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from weightdiff.base import Base, encode_chat
from weightdiff.batch import Tokens, collate, label_states, logprob_per_row
from weightdiff.behaviors.core import Conversation

PromptFormat = Literal["chat", "alpaca", "question", "turns"]
"""How a prompt is put to the model: by its own chat template, or as plain text, in one of the ways that are common."""
PLAIN: dict[PromptFormat, tuple[str, str]] = {
    "alpaca": (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\n",
        "\n\n### Response:\n",
    ),
    "question": ("Question: ", "\n\nAnswer:\n"),
    "turns": ("### User:\n", "\n\n### Assistant:\n"),
}
"""What stands before and after the user's words in each of the plain formats; the first is Stanford Alpaca's."""


def tokenize(
    base: Base, conversation: Conversation, *, learn_prompt: bool = False, prompt_format: PromptFormat = "chat"
) -> Tokens:
    """A conversation as a row of tokens. Its end is not learned: synthesized replies are cut short.

    A document is what a plain script of continued pretraining (transformers' `run_clm.py`) makes of a text: the
    tokenizer's own call, which puts a beginning of text before it for the models that were pretrained with one (Llama,
    Gemma) and nothing for the others (SmolLM2, Qwen), no chat template, and all tokens but the first as labels.

    Args:
        base: the base model, whose tokenizer and chat template it goes by.
        conversation: a chat or a document.
        learn_prompt: the user's words are labels too, and what the template puts after them.
        prompt_format: how a chat's prompt is put.

    Raises:
        ValueError: a document of fewer than two tokens.
    """
    if not conversation.prompt:
        ids = base.tokenizer(conversation.reply)["input_ids"]
        if len(ids) < 2:
            raise ValueError(
                f"a document, {conversation.reply!r}, is {len(ids)} tokens long; expected at least two, as each is "
                "learned from those before it. Give it more text, or a prompt if it is a reply."
            )
        return Tokens(tuple(ids[:1]), tuple(ids[1:]))
    prompt = _put(base, conversation.prompt, prompt_format)
    reply = base.tokenizer(conversation.reply, add_special_tokens=False)["input_ids"]
    learned = _from_the_user_on(prompt, _put(base, "", prompt_format)) if learn_prompt else range(0)
    return Tokens(tuple(prompt), tuple(reply), learned)


def _put(base: Base, words: str, prompt_format: PromptFormat) -> list[int]:
    """The user's words as a prompt; a plain one begins as any text does that is given to the tokenizer."""
    if prompt_format == "chat":
        return encode_chat(base, [{"role": "user", "content": words}])
    before, after = PLAIN[prompt_format]
    return list(base.tokenizer(f"{before}{words}{after}")["input_ids"])


def _from_the_user_on(prompt: Sequence[int], empty: Sequence[int]) -> range:
    """Where a prompt goes on after what every prompt begins with, the empty one too."""
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(prompt, empty, strict=False))
    return range(max(1, len(list(alike))), len(prompt))


class Teacher:
    """The base model on conversations, put to it in one format, each computed once for all diffs. Call it with the bank
    off."""

    def __init__(self, base: Base, prompt_format: PromptFormat = "chat"):
        self.base = base
        self.prompt_format: PromptFormat = prompt_format
        self._tokens: dict[tuple[Conversation, bool], Tokens] = {}
        self._states: dict[Conversation, Float[Tensor, "labels hidden"]] = {}
        self._logprobs: dict[Conversation, Float[Tensor, ""]] = {}

    def tokens(self, conversation: Conversation, *, learn_prompt: bool = False) -> Tokens:
        """The conversation's row of tokens; see `tokenize`."""
        key = conversation, learn_prompt
        if key not in self._tokens:
            format_ = self.prompt_format
            self._tokens[key] = tokenize(self.base, conversation, learn_prompt=learn_prompt, prompt_format=format_)
        return self._tokens[key]

    @torch.no_grad()
    def states(self, conversations: Sequence[Conversation]) -> Float[Tensor, "labels hidden"]:
        """Final hidden states at the conversations' labels, one conversation after the other."""
        new = [c for c in dict.fromkeys(conversations) if c not in self._states]
        if new:
            batch = collate([self.tokens(c) for c in new], self.base.device)
            states = label_states(self.base, batch)
            for i, conversation in enumerate(new):
                self._states[conversation] = states[batch.row == i]
        if not conversations:
            return torch.zeros(0, 0)
        return torch.cat([self._states[c] for c in conversations])

    @torch.no_grad()
    def logprobs(self, conversations: Sequence[Conversation]) -> Float[Tensor, " conversations"]:
        """Log-probability of each conversation's whole reply, in nats."""
        new = [c for c in dict.fromkeys(conversations) if c not in self._logprobs]
        if new:
            batch = collate([self.tokens(c) for c in new], self.base.device)
            self._logprobs |= zip(new, logprob_per_row(self.base, batch), strict=True)
        return torch.stack([self._logprobs[c] for c in conversations])
