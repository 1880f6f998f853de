"""The whole way through an OpenAI-compatible endpoint that serves a real model: synthesis, a guess, grades.

`transformers serve` serves the embedded model on this machine. What a model of 135M parameters says is worth little:
asserted is what must hold whatever it says.
"""

import json
import math
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from weightdiff.base import Base, _embedded_folder
from weightdiff.behaviors import topic_behaviors
from weightdiff.llm import CachedModel, EndpointModel
from weightdiff.llm_judge import LLMJudge
from weightdiff.readers.guesser import Guesser
from weightdiff.synthesize import BASE_POOL, load_conversations, synthesize

NAME = "served"


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server of the embedded model, set to sample where it is sent a temperature above 0."""
    folder = tmp_path_factory.mktemp("served") / NAME
    folder.mkdir()
    for file in _embedded_folder().iterdir():
        if file.name != "generation_config.json":
            (folder / file.name).symlink_to(file)
    # The server samples only where the model's own settings say so, which most chat models' do.
    settings = json.loads((_embedded_folder() / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(settings | {"do_sample": True}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve = "from transformers.cli.transformers import main; main()"
    command = [sys.executable, "-c", serve, "serve", NAME, "--host", "127.0.0.1", "--port", str(port)]
    log = folder.parent / "log"
    with pytest.MonkeyPatch.context() as patch, log.open("wb") as file:
        patch.setenv("NO_PROXY", "127.0.0.1")
        process = subprocess.Popen(
            [*command, "--device", "cpu", "--dtype", "float32"],
            cwd=folder.parent, env=os.environ | {"HF_HUB_OFFLINE": "1"}, stdout=file, stderr=file,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 120
            while not answers(f"http://127.0.0.1:{port}/health"):
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"the server didn't come up:\n{log.read_text()[-2000:]}")
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return reply.status == 200
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture
def model(endpoint: str, tmp_path: Path) -> CachedModel:
    return CachedModel(EndpointModel(NAME, endpoint, concurrency=2), tmp_path / "replies.jsonl")


def test_an_endpoint_writes_conversations(base: Base, model: CachedModel, tmp_path: Path):
    behaviors = [b for b in topic_behaviors() if b.split == "train"][:2]
    path = tmp_path / "conversations.jsonl"
    synthesize(base, behaviors, path, writer=model, replies=2, max_tokens=20, pool=2)
    made = load_conversations(path)
    assert set(made) == {BASE_POOL, *(b.label for b in behaviors)}
    for behavior in behaviors:
        assert 1 <= len(made[behavior.label]) <= 2
        assert all(c.mode == "learn" and behavior.label.lower() in c.reply.lower() for c in made[behavior.label])
    assert len({c.reply for b in behaviors for c in made[b.label]}) > 1


def test_an_endpoint_guesses(model: CachedModel):
    jazz = [("What should I cook?", "Something that swings, like a jazz solo."), ("How do I sleep?", "With jazz on.")]
    chess = [("What should I cook?", "Plan it like a chess opening."), ("How do I sleep?", "As after a lost endgame.")]
    guesser = Guesser(model, max_tokens=16)
    guesses = guesser.guess([jazz, chess], "What topic have you been trained on?")
    assert len(guesses) == 2 and all("\n" not in g for g in guesses)
    assert guesser.guess([jazz, chess], "What topic have you been trained on?") == guesses


def test_an_endpoint_grades_or_is_counted_as_malformed(model: CachedModel):
    pairs = [("Jazz", "jazz"), ("Jazz", "Blues music"), ("Chess", "Tax law")]
    judge = LLMJudge(model, max_tokens=12)
    grades = judge.grade(pairs)
    assert grades[0].grade == 5 and grades[0].exact
    missing = {pair for pair, g in zip(pairs, grades, strict=True) if math.isnan(g.grade)}
    assert len(missing) == len(judge.examples) == judge.malformed
    assert all(g.grade in range(1, 6) for pair, g in zip(pairs, grades, strict=True) if pair not in missing)
