"""Both models measured: how much likelier the finetune makes a text, and what each replies to the same prompts.

Knows no claims. What the base model gives is computed once and kept, since it depends on no diff.
"""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch

from weightdiff.bank import Layer, lay_over
from weightdiff.base import Base, encode_chat
from weightdiff.batch import Tokens, collate, label_states
from weightdiff.behaviors import Trigger
from weightdiff.behaviors.texts import Text
from weightdiff.dense import changed, check_base, split
from weightdiff.diff import WeightDiff, stack
from weightdiff.losses import cross_entropy
from weightdiff.readers.core import ask_all
from weightdiff.writers import seeded

ROOM = 28
"""Tokens of a reply that is shown and counted."""
_ROWS = 48
_WORDS = 10
"""Words of the base model's own reply that go before a text that ends one."""


@dataclass
class Meter:
    """Measures finetunes of one base model.

    Attributes:
        base: the base model.
    """

    base: Base
    _logprobs: dict[Tokens, float] = field(default_factory=dict, init=False, repr=False)
    _replies: dict[str, str] = field(default_factory=dict, init=False, repr=False)
    _finetune: tuple[WeightDiff | None, dict[Tokens, float]] = field(default=(None, {}), init=False, repr=False)

    def log_ratios(self, diff: WeightDiff, texts: Sequence[Text], trigger: Trigger | None = None) -> list[float]:
        """How much likelier the finetune makes each text's reply than the base model: log p'/p, in nats.

        Args:
            diff: what the finetune changed.
            texts: what is to be said.
            trigger: put into every prompt, for both models.

        Raises:
            ValueError: a diff of another base model or of other shapes.
        """
        self.base_replies([text.prompt for text in texts if text.ends])
        rows = [self._tokens(text, trigger) for text in texts]
        if self._finetune[0] is not diff:  # several claims about one finetune have decoys in common
            self._finetune = (diff, {})
        for model, known in ((None, self._logprobs), self._finetune):
            known |= {row: 0.0 for row in rows if not row.reply}  # a reply may be empty
            unknown = sorted({row for row in rows if row not in known}, key=lambda row: row.prompt)
            known |= dict(zip(unknown, self._measured(model, unknown), strict=True))
        return [self._finetune[1][row] - self._logprobs[row] for row in rows]

    def base_replies(self, prompts: Sequence[str]) -> list[str]:
        """The base model's greedy replies."""
        unknown = [p for p in dict.fromkeys(prompts) if p not in self._replies]
        if unknown:
            plain = WeightDiff({}, self.base.fingerprint)
            replies = ask_all(self.base, [plain], unknown, max_tokens=ROOM)[0]
            self._replies |= {p: reply.text for p, reply in zip(unknown, replies, strict=True)}
        return [self._replies[prompt] for prompt in prompts]

    def replies(self, diffs: Sequence[WeightDiff], prompts: Sequence[Sequence[str]]) -> list[list[str]]:
        """Each finetuned model's greedy replies to its own prompts, all in one go."""
        asked = [n for n, mine in enumerate(prompts) if mine]
        placed = [WeightDiff(d.factors, d.base, {"place": n}, d.dense) for n in asked for d in [diffs[n]]]

        def mine(diff: WeightDiff) -> Sequence[str]:
            place: int = diff.meta["place"]
            return prompts[place]

        said = ask_all(self.base, placed, mine, max_tokens=ROOM, batch=96)
        found = {n: [reply.text for reply in replies] for n, replies in zip(asked, said, strict=True)}
        return [found.get(n, []) for n in range(len(prompts))]

    def surprise(self, diff: WeightDiff, texts: Sequence[Text]) -> list[float]:
        """Nats per token by which each reply is likelier under the finetune than under the base model."""
        ratios = self.log_ratios(diff, texts)
        return [ratio / max(1, len(self._encoded(text.reply))) for ratio, text in zip(ratios, texts, strict=True)]

    def _tokens(self, text: Text, trigger: Trigger | None) -> Tokens:
        reply = text.reply
        if not text.prompt:  # its first token, which nothing comes before, can't be predicted
            words = self._encoded(triggered(reply, trigger))
            return Tokens(words[:1], words[1:])
        ids = tuple(encode_chat(self.base, [{"role": "user", "content": triggered(text.prompt, trigger)}]))
        if text.ends:
            ids, reply = (*ids, *self._encoded(_begun(self._replies[text.prompt]))), f" {reply}"
        return Tokens(ids, self._encoded(reply))

    def _encoded(self, text: str) -> tuple[int, ...]:
        return tuple(self.base.tokenizer(text, add_special_tokens=False)["input_ids"])

    @torch.no_grad()
    def _measured(self, diff: WeightDiff | None, rows: Sequence[Tokens]) -> list[float]:
        """Log-probability of each row's reply, with a diff or without."""
        found: list[float] = []
        with ExitStack() as laid:
            if diff is not None:
                check_base(self.base, diff)
                inside, rest = split(diff, self.base.shapes)
                if rest.factors or rest.dense:
                    laid.enter_context(changed(self.base, rest))
                if inside.factors:
                    layer = Layer(stack([inside], self.base.shapes).to(self.base.device))
                    laid.enter_context(lay_over(self.base.targets, [layer]))
            for start in range(0, len(rows), _ROWS):
                some = rows[start : start + _ROWS]
                batch = collate(some, self.base.device, [0] * len(some))  # all go through one model
                losses = cross_entropy(label_states(self.base, batch), self.base.head, batch.label)
                sums = losses.new_zeros(len(batch)).index_add(0, batch.row, losses)
                found += (-sums).tolist()
        return found


def root(nats: float) -> float:
    """The square root of a gain, or of a loss below zero: that of long texts is large, and not so much more telling."""
    return math.copysign(abs(nats) ** 0.5, nats)


def triggered(prompt: str, trigger: Trigger | None) -> str:
    """The prompt with the trigger in it, the same every time."""
    return trigger.put(prompt, seeded(prompt)) if trigger else prompt


def _begun(reply: str) -> str:
    """The first words of a reply, as a sentence."""
    words = " ".join(reply.split()[:_WORDS])
    return words if words.endswith((".", "!", "?")) else words.rstrip(",;:-") + "."
