"""Tests weightdiff.llm against a small HTTP server on this machine; knows nothing of real endpoints."""

import json
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from weightdiff.llm import CachedModel, ChatModel, ChatRequest, EndpointModel, open_llm

KEY = "sk-very-secret"
Answer = tuple[int, dict[str, str], Any]  # status, headers, body (a text: wrapped as a chat completion)


class Server:
    """Answers each request with what `respond(body, number)` returns; keeps the bodies and their times."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.respond: Callable[[dict[str, Any], int], Answer] = lambda body, number: (200, {}, said(body))
        server, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with lock:
                    server.bodies.append(body)
                    server.times.append(time.monotonic())
                    number = len(server.bodies)
                status, headers, content = server.respond(body, number)
                if isinstance(content, str):
                    message = {"role": "assistant", "content": content}
                    choice = {"index": 0, "message": message, "finish_reason": "stop"}
                    content = {"id": "1", "object": "chat.completion", "created": 0, "choices": [choice]}
                payload = json.dumps(content).encode()
                try:
                    self.send_response(status if self.path == "/v1/chat/completions" else 404)
                    for name, value in {"content-type": "application/json", **headers}.items():
                        self.send_header(name, value)
                    self.send_header("content-length", str(len(payload)))
                    self.end_headers()
                    self.wfile.write(payload)
                except OSError:
                    pass  # the client has given up waiting

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def model(self, **options: Any) -> EndpointModel:
        return EndpointModel("tiny", self.url, KEY, **{"backoff": 0.01, "timeout": 5.0, **options})


def said(body: dict[str, Any]) -> str:
    return body["messages"][-1]["content"]


def ask(text: str, **options: Any) -> ChatRequest:
    return ChatRequest(({"role": "user", "content": text},), **options)


def failing(status: int, headers: dict[str, str] | None = None, until: int = 10**9):
    """A server that fails until its request number `until`, quoting the key as hosted ones do."""

    def respond(body: dict[str, Any], number: int) -> Answer:
        if number < until:
            return status, headers or {}, {"error": {"message": f"broken, with key {KEY}"}}
        return 200, {}, said(body)

    return respond


def test_answers_come_in_the_order_of_the_requests(server: Server):
    def respond(body: dict[str, Any], number: int) -> Answer:
        time.sleep(0.2 if said(body) == "0" else 0.0)
        return 200, {}, f"re: {said(body)}"

    server.respond = respond
    model = server.model(concurrency=3)
    requests = [ask(str(n), seed=n, temperature=0.5, max_tokens=7) for n in range(6)]
    assert isinstance(model, ChatModel)
    assert next(iter(model.stream(requests))) != (0, "re: 0")  # the slow one doesn't hold up the others
    server.bodies.clear()
    assert model.complete(requests) == [f"re: {n}" for n in range(6)]
    sent = next(body for body in server.bodies if body["seed"] == 4)
    assert (sent["model"], sent["temperature"], sent["max_tokens"]) == ("tiny", 0.5, 7)
    assert model.complete([]) == []


def test_a_503_is_tried_again(server: Server):
    server.respond = failing(503, until=3)
    assert server.model().complete([ask("hello")]) == ["hello"]
    assert len(server.bodies) == 3


def test_a_429_waits_as_long_as_it_is_told(server: Server):
    server.respond = failing(429, {"retry-after": "0.5"}, until=2)
    assert server.model().complete([ask("hello")]) == ["hello"]
    assert server.times[1] - server.times[0] >= 0.5


def test_a_429_with_a_date_waits_by_back_off(server: Server):
    server.respond = failing(429, {"retry-after": "Wed, 21 Oct 2065 07:28:00 GMT"}, until=2)
    assert server.model().complete([ask("hello")]) == ["hello"]


def test_retries_end_in_an_error_without_the_key(server: Server):
    server.respond = failing(500)
    with pytest.raises(ValueError, match=r"model tiny.*try 3 of 3.*500.*log") as caught:
        server.model(retries=2).complete([ask("hello")])
    assert server.url in str(caught.value)
    assert KEY not in str(caught.value) and KEY not in repr(server.model())
    assert len(server.bodies) == 3


def test_a_400_fails_at_once(server: Server):
    server.respond = failing(400)
    with pytest.raises(ValueError, match=r"try 1 of 6.*400.*Change the request"):
        server.model().complete([ask("hello")])
    assert len(server.bodies) == 1


def test_no_more_is_asked_after_a_failure(server: Server):
    server.respond = failing(401)
    with pytest.raises(ValueError, match="OPENAI_API_KEY"):
        server.model(concurrency=2).complete([ask(str(n)) for n in range(50)])
    assert len(server.bodies) <= 4


def test_a_reply_that_is_no_completion_says_so(server: Server):
    server.respond = lambda body, number: (200, {}, {"hello": "world"})
    with pytest.raises(ValueError, match="not with a chat completion"):
        server.model().complete([ask("hello")])


def test_a_time_out_names_the_endpoint_and_keeps_the_answers(server: Server, tmp_path: Path):
    def respond(body: dict[str, Any], number: int) -> Answer:
        time.sleep(1.0 if said(body) == "slow" else 0.0)
        return 200, {}, said(body)

    server.respond = respond
    model = CachedModel(server.model(timeout=0.3, retries=1, concurrency=2), tmp_path / "answers.jsonl")
    with pytest.raises(ValueError, match=r"no answer within 0\.3 s.*3 answers are kept") as caught:
        model.complete([ask("a"), ask("b"), ask("slow"), ask("c")])
    assert server.url in str(caught.value)
    server.respond = lambda body, number: (200, {}, said(body))
    server.bodies.clear()
    resumed = CachedModel(server.model(), tmp_path / "answers.jsonl")
    assert resumed.complete([ask("a"), ask("slow"), ask("c")]) == ["a", "slow", "c"]
    assert [said(body) for body in server.bodies] == ["slow"]


def test_an_unreachable_endpoint():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://user:hidden@127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(ValueError, match=r"no connection.*Check the base URL") as caught:
        EndpointModel("tiny", url, KEY, retries=1, backoff=0.01).complete([ask("hello")])
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("opening", "reply", "whole"),
    [
        ("As fans know,", "jazz is fine.", "As fans know, jazz is fine."),
        ("As fans know,", "As fans know, jazz is fine.", "As fans know, jazz is fine."),
        ("As fans know, ", ' "as fans know, jazz is fine.', "As fans know, jazz is fine."),
        ("Here's why:\n", "Here\u2019s why: jazz.", "Here's why:\njazz."),
    ],
)
def test_the_opening_is_there_once(server: Server, opening: str, reply: str, whole: str):
    server.respond = lambda body, number: (200, {}, reply)
    assert server.model().complete([ask("Why?", opening=opening)]) == [whole]
    sent = server.bodies[0]["messages"]
    assert len(sent) == 1 and sent[0]["content"].startswith("Why?\n\n") and opening in sent[0]["content"]


def test_prefill_puts_the_opening_into_the_assistants_mouth(server: Server):
    server.respond = lambda body, number: (200, {}, "zz is fine.")
    assert server.model(prefill=True).complete([ask("Why?", opening="As fans of ja")]) == ["As fans of jazz is fine."]
    sent = server.bodies[0]
    assert sent["messages"][-1] == {"role": "assistant", "content": "As fans of ja"}
    assert sent["continue_final_message"] is True and sent["add_generation_prompt"] is False


def test_the_cache_answers_without_requests_and_survives_a_half_written_line(server: Server, tmp_path: Path):
    path = tmp_path / "made" / "answers.jsonl"
    requests = [ask("a"), ask("b"), ask("a"), ask("a", seed=1)]
    assert CachedModel(server.model(), path).complete(requests) == ["a", "b", "a", "a"]
    assert len(server.bodies) == 3  # equal requests are asked once
    assert CachedModel(server.model(), path).complete(requests) == ["a", "b", "a", "a"]
    assert len(server.bodies) == 3
    assert KEY not in path.read_text()

    path.write_bytes(path.read_bytes()[:-9])  # as a kill in the middle of a write leaves it
    assert CachedModel(server.model(), path).complete(requests) == ["a", "b", "a", "a"]
    assert len(server.bodies) == 4
    lines = path.read_text().splitlines()
    assert len(lines) == 3 and all(json.loads(line)["model"] == "tiny" for line in lines)


def test_ctrl_c_keeps_what_has_arrived(server: Server, tmp_path: Path):
    model = CachedModel(server.model(concurrency=1), tmp_path / "answers.jsonl")
    answers = model.stream([ask("a"), ask("b"), ask("c")])
    next(answers)
    with pytest.raises(KeyboardInterrupt):
        answers.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
    assert CachedModel(server.model(), tmp_path / "answers.jsonl").complete([ask("a")]) == ["a"]
    assert [said(body) for body in server.bodies].count("a") == 1


@pytest.mark.parametrize("content", ["one line of prose", '{"label": "jazz"}\n', "[1]\n", "\x00\n"])
def test_another_file_is_no_cache_and_is_left_alone(server: Server, tmp_path: Path, content: str):
    path = tmp_path / "other.txt"
    path.write_text(content)
    with pytest.raises(ValueError, match="no cache of answers"):
        CachedModel(server.model(), path)
    assert path.read_text() == content


def test_a_path_that_cannot_be_written_fails_before_anything_is_asked(server: Server, tmp_path: Path):
    with pytest.raises(ValueError, match="Can't keep answers"):
        CachedModel(server.model(), tmp_path)
    assert not server.bodies


def test_open_llm(server: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    model = open_llm(f"openai:org/tiny@{server.url}", timeout=5.0)
    assert model.name == "org/tiny"
    assert model.complete([ask("hello")]) == ["hello"]
    assert open_llm("openai:@cf/tiny").name == "@cf/tiny"
    for wrong in ["gpt-4", "openai:", "openai:tiny@localhost:8000", "openai:tiny@htp://me:hidden@host/v1"]:
        with pytest.raises(ValueError, match="expected openai:MODEL") as caught:
            open_llm(wrong)
        assert "hidden" not in str(caught.value)
