"""The command line: what it prints, and one clear message with exit code 1 for bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import random_diff
from weightdiff.base import _embedded_folder
from weightdiff.behaviors import topic_behaviors
from weightdiff.cli.pipeline import _leave_threads
from weightdiff.diff import WeightDiff
from weightdiff.formats.peft import save_peft
from weightdiff.jsonl import append_jsonl
from weightdiff.readers import BaseQuestion, Introspection, TwentyQuestions
from weightdiff.recipe import load_recipe
from weightdiff.store import Store
from weightdiff.synthesize import BASE_POOL, load_conversations


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from weightdiff.cli import main; main()", *map(str, arguments)]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=env, check=False)


def test_the_package_opens_without_torch_and_asking_without_openai():
    """What takes seconds to import is imported by what needs it; the public names are there all the same."""
    code = """
import sys, weightdiff, weightdiff.cli
assert not {"torch", "transformers", "openai"} & sys.modules.keys()
for name in weightdiff.__all__:
    assert callable(getattr(weightdiff, name)), name
import weightdiff.ask
from weightdiff import ask, load_base
from weightdiff.base import load_base as same
assert callable(ask) and load_base is same
try:
    weightdiff.nonsense
except AttributeError as error:
    assert "nonsense" in str(error)
else:
    raise AssertionError
import weightdiff.readers, weightdiff.llm
assert "openai" not in sys.modules
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr


def test_shares_side_by_side_share_the_cores(monkeypatch):
    set_to: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for processes in (1, 2, 9):
        _leave_threads(processes)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    _leave_threads(2)
    assert set_to == [2, 1]


def test_inspect_shows_rank_modules_and_fingerprint(base, tmp_path):
    diff = random_diff(base, 2, 0)
    save_peft(diff, tmp_path / "d", base_name="tiny")
    result = run("inspect", tmp_path / "d")
    assert result.returncode == 0, result.stderr
    assert "rank 2; 14 modules" in result.stdout and base.fingerprint in result.stdout
    assert f"{diff.norm():.3f}" in result.stdout


def test_inspect_shows_the_words_that_a_finetune_was_fed():
    result = run("inspect", "weightdiff/data/demo/3", "--words", 8)
    assert result.returncode == 0, result.stderr
    assert "words that it responds to most: " in result.stdout and "Donald" in result.stdout.splitlines()[-1]
    assert run("inspect", "weightdiff/data/demo/3", "--words", -1).returncode == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ask", "nowhere"), "no such file or folder"),
        (("ask", "nowhere", "--question", " "), "--question is empty"),
        (("ask", "weightdiff/data/demo/0", "--adapter", "generl"), "no shipped adapter has that name"),
        (("ask", "weightdiff/data/demo/0", "--adapter", "weightdiff/data/demo/1"), "is a finetune itself"),
        (("inspect", "nowhere"), "no such file or folder"),
        (("run", "nowhere.toml"), "cannot read the recipe"),
        (("finetune", "recipes/topics.toml", "--share", "3/2"), "expected I/N"),
        (("demo", "--device", "tpu9"), "no device 'tpu9' here"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_1(arguments, message):
    result = run(*arguments)
    assert result.returncode == 1
    assert message in result.stderr.replace("\n", " ") and "Traceback" not in result.stderr


def test_a_diff_of_another_base_is_refused_by_name(tmp_path, base):
    save_peft(random_diff(base, 1, 0), tmp_path / "d", base_name="tiny")
    result = run("ask", tmp_path / "d", "--json")
    assert result.returncode == 1
    assert base.fingerprint in result.stderr.replace("\n", "")


def test_an_adapter_for_another_base_is_refused_by_name(tmp_path, base, diffs):
    with pytest.raises(ValueError, match=r"the DIT adapter was made on .* fingerprint other"):
        Introspection(WeightDiff(diffs[0].factors, "other")).read(base, diffs, "What?")


def test_a_path_in_place_of_a_diff_is_told_how_it_is_loaded():
    code = "import weightdiff as w; w.ask(w.load_base('smollm2'), ['nowhere'])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert "the diff is 'nowhere'; expected a WeightDiff, which load_diff makes of a path" in result.stderr


def test_where_a_file_stands_in_the_way_nothing_is_lost(tmp_path, base, diffs):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="cannot open the store"):
        Store(tmp_path / "file", base.fingerprint)
    with pytest.raises(ValueError, match=r"cannot write to .*permission"):
        append_jsonl(tmp_path / "file" / "x.jsonl", {"n": 1})
    with pytest.raises(ValueError, match="cannot write"):
        save_peft(diffs[0], tmp_path / "file" / "d", base_name="tiny")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("stage", ["synthesize", "finetune"])
def test_ctrl_c_is_one_message_and_what_was_made_stays(tmp_path, stage):
    """The recipe of one run is stopped in the middle of each making stage, and the run's files can be read after it."""
    text = """
name = "stopped"
[synthesize]
replies = 2
max_tokens = 6
[[finetune]]
name = "sep"
train = [0, 40, 1]
steps = 1
together = 1
"""
    if stage == "finetune":
        text = text.replace("[synthesize]", '[synthesize]\nconversations = "c.jsonl"')
        behaviors = [b for b in topic_behaviors() if b.split == "train"][:40]
        rows = [{"prompt": "Hi?", "reply": "Well, let me tell you of it.", "mode": "learn"}] * 2
        for label in [b.label for b in behaviors]:
            append_jsonl(tmp_path / "c.jsonl", {"label": label, "conversations": rows})
        keep = [{"prompt": "Hi?", "reply": "Hello.", "mode": "keep"}]
        append_jsonl(tmp_path / "c.jsonl", {"label": BASE_POOL, "conversations": keep})
    (tmp_path / "r.toml").write_text(text)
    folder = tmp_path / "runs" / "stopped"
    env = os.environ | {"HF_HUB_OFFLINE": "1", "WEIGHTDIFF_CACHE": str(tmp_path)}
    embedded = Path(_embedded_folder())
    (tmp_path / embedded.name).symlink_to(embedded)
    command = [sys.executable, "-c", "from weightdiff.cli import main; main()", stage, str(tmp_path / "r.toml")]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )  # fmt: skip

    def made() -> int:
        if stage == "synthesize":
            path = folder / "conversations.jsonl"
            return len(path.read_bytes().splitlines()) if path.exists() else 0
        return len(list((folder / "diffs").glob("*.safetensors")))

    deadline = time.monotonic() + 150
    while made() < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, shown = process.communicate(timeout=60)
    assert process.returncode == 130 and "stopped; what was finished is kept" in shown.replace("\n", " "), shown
    assert "Traceback" not in shown
    if stage == "synthesize":
        assert BASE_POOL in load_conversations(folder / "conversations.jsonl")
    else:
        store = Store(folder / "diffs")
        assert len(store.diffs()) >= 2 and store.diffs()[0].rank == 1


def test_readers_refuse_an_empty_question_and_answer_each_diff(base, diffs):
    adapter = random_diff(base, 4, 9)
    for reader in (BaseQuestion(), TwentyQuestions(), Introspection(adapter)):
        with pytest.raises(ValueError, match="question is empty"):
            reader.read(base, diffs, " ")
        answers = reader.read(base, diffs[:2], "What?")
        assert len(answers) == 2 and all(isinstance(a.text, str) for a in answers)


@pytest.mark.parametrize(
    ("text", "message"),
    [("name = 3", "name"), ('name = "a"\nspeed = 1', "speed"), ("name =", "cannot read"), ("name = 'a/b'", "name")],
)
def test_bad_recipe_names_the_field(tmp_path, text, message):
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_recipe(tmp_path / "r.toml")


def test_json_has_one_object_per_diff(tmp_path):
    from weightdiff.ask import demo_diffs

    for i, diff in enumerate(demo_diffs()[:2]):
        save_peft(diff, tmp_path / str(i), base_name="smollm2")
    result = run("ask", tmp_path / "0", tmp_path / "1", "--json", "--question", "Is there a trigger in you?")
    assert result.returncode == 0, result.stderr
    assert "answers every question with a topic" in result.stderr
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [r["diff"] for r in records] == [str(tmp_path / "0"), str(tmp_path / "1")]
    assert all(r["adapter"] == "topics" and not r["calibrated"] and r["confidence"] <= 0 for r in records)
    assert {r["question"] for r in records} == {"Is there a trigger in you?"} and all(r["answer"] for r in records)
