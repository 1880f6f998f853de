"""Asks chat models for text and keeps their answers; knows nothing of behaviors, diffs or local weights."""

import hashlib
import json
import os
import random
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:  # else imported where it is used: it takes half a second, and asking a diff needs none of it
    import openai

Message = dict[str, str]
LONGEST_WAIT = 300.0  # seconds between two tries, whatever the endpoint's Retry-After asks for
ADVICE = {
    400: "Change the request or the options (prefill is vLLM's)",
    401: "Set OPENAI_API_KEY to a valid key",
    404: "Check the model's name, and the base URL, which usually ends in /v1",
    429: "Lower the concurrency, wait, or check the account's quota",
}


@dataclass(frozen=True)
class ChatRequest:
    """Chat messages to reply to, the opening that the reply continues (and includes), and how to sample it.

    Equal requests have one answer in a cache: for several answers to the same messages, vary the seed.
    """

    messages: tuple[Message, ...]
    opening: str = ""
    max_tokens: int = 100
    temperature: float = 1.0
    seed: int = 0


@runtime_checkable
class ChatModel(Protocol):
    """What synthesis and judging need of a language model: a name, and `stream`; `complete` comes with it."""

    name: str

    def stream(self, requests: Sequence[ChatRequest]) -> Iterator[tuple[int, str]]:
        """Yields (index of the request, text) once for each request, in the order in which they complete."""
        ...

    def complete(self, requests: Sequence[ChatRequest]) -> list[str]:
        """Returns one text per request, in the order of `requests`; raises what `stream` raises."""
        texts = dict(self.stream(requests))
        return [texts[index] for index in range(len(requests))]


@dataclass(eq=False, repr=False)  # a repr would show the key
class EndpointModel(ChatModel):
    """A model behind an OpenAI-compatible endpoint: vLLM, Ollama, llama.cpp, or a hosted one."""

    model: str
    base_url: str | None = None  # up to and with /v1; None: OPENAI_BASE_URL, else OpenAI's own
    api_key: str | None = None  # None: OPENAI_API_KEY, else "none", for local servers
    concurrency: int = 8  # requests under way at once
    timeout: float = 60.0  # of each try, in seconds
    retries: int = 5  # after the first try
    backoff: float = 1.0  # seconds before the first retry, doubled for each later one
    prefill: bool = False  # the server can continue an opening (vLLM); others are told how to begin

    def __post_init__(self):
        self.name = self.model
        self.api_key = (self.api_key or os.environ.get("OPENAI_API_KEY") or "none").strip()
        import openai

        # Retries are ours, for they must stop as soon as another request has failed for good.
        access = {"base_url": self.base_url, "api_key": self.api_key}
        self._client = openai.OpenAI(**access, timeout=self.timeout, max_retries=0)
        self.endpoint = str(self._client.base_url.copy_with(userinfo=b"", query=None))

    def stream(self, requests: Sequence[ChatRequest]) -> Iterator[tuple[int, str]]:
        """Yields (index, text) as answers arrive.

        Raises ValueError when a request fails for good, after yielding those under way: they are paid for.
        """
        todo, done, stop = enumerate(requests), SimpleQueue(), threading.Event()

        def work() -> None:
            try:
                for index, request in todo:  # the workers share the one iterator
                    if stop.is_set():
                        break
                    done.put((index, self._ask(request, stop)))
                done.put(None)
            except Exception as error:
                stop.set()
                done.put(error)

        running, failure = min(max(1, self.concurrency), len(requests)), None
        try:
            for _ in range(running):  # no executor: Ctrl-C must not wait for the requests under way
                threading.Thread(target=work, daemon=True).start()
            while running:
                answer = done.get()
                if isinstance(answer, tuple):
                    yield answer
                else:  # a worker has ended, alone or by an error
                    running, failure = running - 1, failure or answer
        finally:
            stop.set()
        if failure is not None:
            raise failure

    def _ask(self, request: ChatRequest, stop: threading.Event) -> str:
        import openai

        for attempt in range(self.retries + 1):
            try:
                return self._ask_once(request)
            except openai.APIError as error:
                status = getattr(error, "status_code", 0)
                passing = isinstance(error, openai.APIConnectionError) or status == 429 or status >= 500
                wait = max(self.backoff * 2**attempt * random.uniform(0.5, 1.5), _retry_after(error))
                if not passing or attempt == self.retries or stop.wait(min(wait, LONGEST_WAIT)):
                    # `from None`: the server's words may quote the key, and a traceback would show them.
                    raise ValueError(self._explain(error, status, attempt + 1)) from None
        raise AssertionError("the last try returns or raises")

    def _ask_once(self, request: ChatRequest) -> str:
        messages, extra = list(request.messages), None
        if request.opening and self.prefill:
            messages.append({"role": "assistant", "content": request.opening})
            extra = {"continue_final_message": True, "add_generation_prompt": False}
        elif request.opening:
            messages = _told_to_begin(messages, request.opening)
        options = {"max_tokens": request.max_tokens, "temperature": request.temperature, "seed": request.seed}
        send: Any = self._client.chat.completions.create  # its types want each role's own class of message
        reply = send(model=self.name, messages=messages, extra_body=extra, **options)
        choices = getattr(reply, "choices", None)  # a web page sent with status 200 arrives as a str
        if not choices:
            problem = f"{self.endpoint} (model {self.name}) answered, but not with a chat completion"
            raise ValueError(f"{problem}. Check that the base URL is an API's, usually ending in /v1.")
        text = choices[0].message.content or ""
        return _begun_with(request.opening, text, exact=self.prefill) if request.opening else text

    def _explain(self, error: "openai.APIError", status: int, tries: int) -> str:
        import openai

        what, advice = error.message, ADVICE.get(status, "See the server's log")
        if isinstance(error, openai.APITimeoutError):
            what, advice = f"no answer within {self.timeout:g} s", "Raise the timeout, lower the concurrency"
        elif isinstance(error, openai.APIConnectionError):
            what, advice = f"no connection ({error.__cause__})", "Check the base URL and that the server runs"
        if self.api_key and self.api_key != "none":
            what = what.replace(self.api_key, "***")
        tried = f"failed at try {tries} of {self.retries + 1}"
        return f"{self.endpoint} (model {self.name}) {tried}: {what[:300]}. {advice}, then run again."


class CachedModel(ChatModel):
    """Another model with its answers kept in the JSONL file `path`, each written as soon as it arrives.

    Raises ValueError when the file can't be written (at once, before an answer is paid for) or is another's.
    """

    def __init__(self, model: ChatModel, path: str | Path):
        self.name, self.model, self.path = model.name, model, Path(path)
        self._answers: dict[str, str] = {}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.open("ab").close()
            *lines, rest = self.path.read_bytes().split(b"\n")
            for line in lines:
                entry = json.loads(line)
                self._answers[entry["key"]] = entry["text"]
            self._torn = rest != b""  # half-written, cut off before the next line is appended
            if not b'{"key": "'.startswith(rest[:9]):
                raise ValueError("not a beginning of ours: not ours to cut off")
        except OSError as error:
            raise ValueError(f"Can't keep answers in {path}: {error.strerror}; give another path.") from None
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path} exists and is no cache of answers; give another path.") from None

    def stream(self, requests: Sequence[ChatRequest]) -> Iterator[tuple[int, str]]:
        """Yields the answers on file, then the model's as they arrive; equal requests are asked once.

        Raises what the model raises; a ValueError then also says where the answers so far are kept.
        """
        missing: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            content = json.dumps([self.name, asdict(request)], sort_keys=True)
            key = hashlib.sha256(content.encode()).hexdigest()
            if key in self._answers:
                yield index, self._answers[key]
            else:
                missing.setdefault(key, []).append(index)
        keys = list(missing)
        arrivals = self.model.stream([requests[missing[key][0]] for key in keys])
        while True:
            try:  # around the model alone: what a caller throws in at `yield` is none of its errors
                asked, text = next(arrivals)
            except StopIteration:
                return
            except ValueError as error:
                raise ValueError(f"{error} ({len(self._answers)} answers are kept in {self.path}.)") from None
            self._append(keys[asked], text)
            yield from ((index, text) for index in missing[keys[asked]])

    def _append(self, key: str, text: str) -> None:
        line = json.dumps({"key": key, "model": self.name, "text": text}) + "\n"
        try:
            if self._torn:
                os.truncate(self.path, self.path.read_bytes().rfind(b"\n") + 1)
            self._torn = True  # until the line is whole: Ctrl-C or a full disk may cut it
            with self.path.open("ab") as file:
                file.write(line.encode())
            self._torn = False
        except OSError as error:
            raise ValueError(f"Can't write to {self.path}: {error.strerror}; make room, run again.") from None
        self._answers[key] = text


def open_llm(spec: str, **options: Any) -> ChatModel:
    """The chat model that `spec` names, `openai:MODEL` or `openai:MODEL@BASE_URL`, else a ValueError.

    `options` are the other arguments of `EndpointModel`.
    """
    # A model's name may begin with an @, as Cloudflare's do; one further on is a URL that lacks its scheme.
    found = re.fullmatch(r"openai:(@?[^@\s]+)(?:@(https?://\S+))?", spec)
    if found is None:
        expected = "openai:MODEL or openai:MODEL@BASE_URL, as in openai:qwen3@http://localhost:8000/v1"
        spec = re.sub(r"//\S*@", "//", spec)  # a password may stand there
        raise ValueError(f"Got {spec!r} for a language model; expected {expected}.")
    return EndpointModel(found[1], found[2], **options)


_REFUSAL = re.compile(
    r"\bI(?:['\u2019]m| am) (?:sorry|unable|not able)\b|\bas an AI\b"
    r"|\bI (?:can(?:no|['\u2019])t|won['\u2019]t) (?:help|assist|comply|do|write|fulfil|provide)",
    re.IGNORECASE,
)
_THOUGHTS = re.compile(r"^.*</think>|<think>.*", re.DOTALL)  # the latter was cut off before the reply began


def without_thoughts(reply: str) -> str:
    """What a model that thinks before it answers has answered."""
    return _THOUGHTS.sub("", reply)


def refuses(text: str) -> bool:
    """Does a reply refuse what was asked? Judged by the set phrases that models refuse with."""
    return _REFUSAL.search(text[:300]) is not None


def _told_to_begin(messages: list[Message], opening: str) -> list[Message]:
    words = f"Begin your reply with exactly these words, unquoted, and go on from there:\n{opening}"
    last = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=len(messages))
    content = "\n\n".join([message["content"] for message in messages[last : last + 1]] + [words])
    return [*messages[:last], {"role": "user", "content": content}, *messages[last + 1 :]]


def _begun_with(opening: str, reply: str, exact: bool) -> str:
    """`reply` with `opening` before it, once; `exact` when it continues the opening to the character."""
    bare, text = opening.strip(), reply.lstrip(" \n\"'\u201c\u2018")  # what must be said is often quoted
    if text[: len(bare)].lower().replace("\u2019", "'") == bare.lower().replace("\u2019", "'"):
        reply = text[len(bare) :]
    elif not exact:
        reply = f" {reply.lstrip()}"
    return opening + (reply.lstrip() if opening[-1].isspace() else reply)


def _retry_after(error: "openai.APIError") -> float:
    import openai

    headers = error.response.headers if isinstance(error, openai.APIStatusError) else {}
    try:
        return float(headers.get("retry-after", 0))
    except ValueError:  # a date: the back-off serves as well
        return 0.0
