"""The command line: what it prints, and one clear message with exit code 1 for bad input."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import random_diff
from weightdiff.formats.peft import save_peft
from weightdiff.readers import BaseQuestion, Introspection, TwentyQuestions
from weightdiff.recipe import load_recipe


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from weightdiff.cli import main; main()", *map(str, arguments)]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=env, check=False)


def test_inspect_shows_rank_modules_and_fingerprint(base, tmp_path):
    diff = random_diff(base, 2, 0)
    save_peft(diff, tmp_path / "d", base_name="tiny")
    result = run("inspect", tmp_path / "d")
    assert result.returncode == 0, result.stderr
    assert "rank 2; 14 modules" in result.stdout and base.fingerprint in result.stdout
    assert f"{diff.norm():.3f}" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ask", "nowhere"), "no such folder"),
        (("ask", "nowhere", "--question", " "), "--question is empty"),
        (("inspect", "nowhere"), "no such folder"),
        (("run", "nowhere.toml"), "cannot read the recipe"),
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
    result = run("ask", tmp_path / "0", tmp_path / "1", "--json")
    assert result.returncode == 0, result.stderr
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [r["diff"] for r in records] == [str(tmp_path / "0"), str(tmp_path / "1")]
    assert all({"question", "answer", "confidence"} <= r.keys() for r in records)
