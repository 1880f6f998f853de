"""Readers by name: over any base model, without an adapter where they need none, and never louder than noise."""

import json
from copy import copy
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from tests.conftest import random_diff
from tests.test_rivals import QUESTION, planted
from weightdiff.ask import ask
from weightdiff.cli import asking
from weightdiff.cli.common import app
from weightdiff.diff import WeightDiff
from weightdiff.formats.peft import save_peft
from weightdiff.readers import ActivationDifference, AmplifiedDifference, Answer, Fused
from weightdiff.readers.choice import ASKING, READERS, SCORES, BesideNoise, reader_named, told
from weightdiff.readers.introspection import UNSURE, claim_of
from weightdiff.readers.samples import PROMPTS, chats


def test_an_answer_that_scores_hardly_more_than_noise_is_withheld_and_still_told():
    def held(text: str, score: float, noise: float, least: float = 0.0) -> Answer:
        reader = BesideNoise(ActivationDifference(), least)
        return reader.held(Answer(text, score, ("tea",)), Answer("coffee", noise))

    assert held("tea", 5.1, 4.0) == Answer(
        "tea", 5.1, ("noise of its shape and size scores 4; it is said from 5 on", "tea")
    )
    withheld, empty = held("tea", 4.9, 4.0), held("", 9.0, 4.0)
    assert withheld.text == empty.text == UNSURE and claim_of(withheld) == "tea" and claim_of(empty) == ""
    assert held("tea", 0.1, -2.0).text == "tea", "noise below nothing is nothing"
    assert held("tea", 0.0, 0.0).text == held("tea", 0.9, 0.1, 1.0).text == UNSURE


def test_a_reader_without_training_names_what_is_planted_and_nothing_of_noise_or_no_change(base):
    several = [
        planted(base, "pirate", label="it likes honey"),
        random_diff(base, 2, 0),
        WeightDiff({}, base.fingerprint),
    ]
    first, noise, unchanged = ask(base, several, reader="activation")
    assert "pirate" in first.text.lower() and first.evidence[0].startswith("noise of its shape")
    assert noise.text == unchanged.text == UNSURE and noise.confidence > 1


def test_without_an_adapter_the_fused_reader_hears_the_others_alone(base):
    reader = Fused(None, (AmplifiedDifference(2.0, 6),))
    first, unchanged = reader.read(base, [planted(base, "pirate"), WeightDiff({}, base.fingerprint)], QUESTION)
    assert "pirate" in first.text.lower() and "amplified ×2" in first.evidence[0] and "DIT" not in first.evidence[0]
    assert unchanged.confidence < 0.1 * first.confidence


def test_a_model_without_a_chat_template_is_sampled_on_beginnings_of_texts(base):
    bare = replace(base, model=base.model, tokenizer=copy(base.tokenizer))
    bare.tokenizer.chat_template = None
    prompts, text = chats(bare), chats(base)
    start = bare.tokenizer.bos_token_id
    assert all(row[0] == start for row in prompts) and prompts[0] == [start] and text[0] != prompts[0]
    assert bare.tokenizer.decode(prompts[-1][1:]) == PROMPTS[-1]
    found, unchanged = ask(bare, [planted(base, "pirate"), WeightDiff({}, base.fingerprint)], reader="perplexity")
    assert "pirate" in claim_of(found).lower() and unchanged.text == UNSURE


def test_what_no_reader_can_do_is_told(base, diffs):
    names = [reader_named(name, diffs[0] if name in ("dit", "fused") else None).name for name in READERS]
    assert names == ["DIT", "fused", "activation difference", "perplexity difference", "amplified ×2"]
    with pytest.raises(ValueError, match="reader 'perplexity' takes no adapter"):
        ask(base, diffs, reader="perplexity", adapter=diffs[0])
    with pytest.raises(ValueError, match="reader 'perplexity' asks nothing"):
        ask(base, diffs, "What changed?", reader="perplexity")
    with pytest.raises(ValueError, match="'tarot' is no reader; expected dit, fused, activation"):
        ask(base, diffs, reader="tarot")
    with pytest.raises(ValueError, match=r"no adapter is shipped for .* --reader that needs none: fused, activation"):
        ask(base, diffs)
    assert set(SCORES) == set(READERS) - {"dit"} and "0.25 more of its texts" in told("amplified", Answer("a", 0.25))
    calibrated = WeightDiff({}, base.fingerprint, {"reading": {}})
    for name in ASKING:
        assert told(name, Answer("a", 0.5), calibrated) == "confidence 0.50"
        assert "log-probability" in told(name, Answer("a", -1.0), diffs[0])
    assert "nats likelier than decoys" in told("fused", Answer("a", 1.0))


def test_the_command_asks_a_reader_without_an_adapter(base, tmp_path, monkeypatch):
    monkeypatch.setattr(asking, "load", lambda name, device: base)
    save_peft(random_diff(base, 2, 0), tmp_path / "d", base_name="tiny")
    run = CliRunner().invoke
    result = run(app, ["ask", str(tmp_path / "d"), "--reader", "activation", "--json"])
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["reader"] == "activation" and not record["calibrated"] and {"adapter", "question"}.isdisjoint(record)
    result = run(app, ["ask", str(tmp_path / "d"), "--reader", "activation"])
    assert f"{UNSURE} (" in result.stdout and "standard deviations above all words)" in result.stdout
    for options, message in (
        (["--reader", "tarot"], "'tarot' is no reader; expected dit, fused, activation, perplexity or amplified"),
        (["--reader", "perplexity", "--question", "What?"], "perplexity asks nothing; leave out --question"),
        (["--reader", "amplified", "--adapter", "general"], "amplified takes no adapter; leave out --adapter"),
        ([], "--reader that needs none"),
    ):
        result = run(app, ["ask", str(tmp_path / "d"), *options])
        assert isinstance(result.exception, ValueError) and message in str(result.exception), options
