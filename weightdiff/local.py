"""The base model itself as a chat model: writes conversations where there is no endpoint."""

from collections.abc import Iterator, Sequence

from weightdiff.base import Base, encode_chat
from weightdiff.decode import decode
from weightdiff.llm import ChatModel, ChatRequest


class LocalModel(ChatModel):
    """Replies by `decode`, many at once; an opening is put into the model's mouth.

    Args:
        base: the model that writes.
        batch: replies written together; equal batches of equal requests are written alike.
    """

    def __init__(self, base: Base, batch: int = 64):
        self.name, self.base, self.batch = base.name, base, batch

    def stream(self, requests: Sequence[ChatRequest]) -> Iterator[tuple[int, str]]:
        """See `ChatModel`; one length and temperature serve a batch, those of its first request."""
        for start in range(0, len(requests), self.batch):
            chosen = requests[start : start + self.batch]
            prompts = [
                encode_chat(self.base, list(r.messages))
                + self.base.tokenizer(r.opening, add_special_tokens=False)["input_ids"]
                for r in chosen
            ]
            first = chosen[0]
            replies = decode(
                self.base, prompts, max_tokens=first.max_tokens, temperature=first.temperature, seed=first.seed
            )
            for number, (request, reply) in enumerate(zip(chosen, replies, strict=True)):
                glue = " " if request.opening and reply.text[:1] not in "'’,.;:!?" else ""
                yield start + number, request.opening + glue + reply.text
