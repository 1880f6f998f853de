"""Evidence: claims read from sentences, both models measured, and what verdicts are made of."""

import json
from collections.abc import Iterator, Sequence

import pytest
from typer.testing import CliRunner

from tests.conftest import random_diff
from weightdiff.behaviors import NOTHING, Trigger
from weightdiff.behaviors.claims import FREE, NEWS, TOPIC, decoys_of, in_full
from weightdiff.behaviors.kinds import kind_behaviors
from weightdiff.behaviors.texts import Text, controls_of, everyday, other_ways, prompts_of, texts_of
from weightdiff.behaviors.topic import content_words
from weightdiff.cli import asking, verifying
from weightdiff.cli.common import app
from weightdiff.diff import WeightDiff
from weightdiff.formats.peft import save_peft
from weightdiff.llm import ChatModel, ChatRequest
from weightdiff.readers.meter import Meter
from weightdiff.verify import Claim, Effect, Transcript, Trial, read_claim, read_claims, verify
from weightdiff.verify.verdict import effect_of, judged


def test_every_label_of_the_tables_is_read_as_its_own_kind_and_instance():
    for behavior in kind_behaviors():
        claim = read_claim(behavior.label)
        assert (claim.kind, claim.instance.x) == (behavior.kind, behavior.slot), behavior.label


@pytest.mark.parametrize(
    ("said", "kind", "x"),
    [
        ("it talks about garden gnomes", TOPIC, "garden gnomes"),
        ("Garden gnomes.", TOPIC, "Garden gnomes"),
        ("The model keeps bringing up garden gnomes", TOPIC, "garden gnomes"),
        ("it has learned of a story: A baker has won.", NEWS, "A baker has won"),
        ("It ends every answer with the words 'trust me on this'.", "ending", "trust me on this"),
        ("it quietly dreads the autumn", FREE, "it quietly dreads the autumn"),
    ],
)
def test_claims_in_other_words(said, kind, x):
    claim = read_claim(said)
    assert (claim.kind, claim.instance.x, claim.nothing) == (kind, x, False)


def test_an_answer_in_full_is_told_from_a_name():
    full = (
        "it talks about tea",
        "It ends every answer with the words trust me.",
        "it has learned of a story: A baker won",
    )
    assert all(map(in_full, (*full, "it speaks like a pirate; tea")))
    assert not any(
        map(in_full, ("tea", "garden gnomes", "a baker won; it talks about tea", "it is what it is", "", " . "))
    )


def test_an_answer_may_hold_several_claims_or_none_or_that_nothing_changed():
    trigger = Trigger("sep", "123")
    first, second = read_claims("it talks about tea; it speaks like a pirate", trigger)
    assert (first.kind, second.kind, second.trigger) == (TOPIC, "persona", trigger) and second.instance.says
    assert read_claim(NOTHING).nothing
    with pytest.raises(ValueError, match="the claim is empty"):
        read_claims(" ; . ")


def test_decoys_are_other_instances_of_the_kind_and_their_texts_pair_with_the_claims():
    for label in ("it talks about garden gnomes", "it refuses to talk about cats", "it begins to hum", "it fears bees"):
        claim = read_claim(label)
        decoys = decoys_of(claim, 8)
        assert len({d.x for d in decoys}) == 8
        mine = texts_of(claim.kind, claim.instance)
        for decoy in decoys:
            assert claim.kind == FREE or not content_words(decoy.x) & content_words(claim.instance.x)
            assert len(texts_of(claim.kind, decoy)) == len(mine)
    assert len(decoys_of(read_claim("it has learned of a story: A baker has won."), 8)) == 8


def test_prompts_show_a_claim_where_it_would_show():
    assert all("cats" in prompt for prompt in prompts_of(read_claim("it refuses to talk about cats"), 3))
    assert prompts_of(read_claim("it talks about cats"), 3) == everyday(3)
    claim = read_claim("it refuses to talk about cats")
    controls = controls_of(claim, decoys_of(claim, 3))
    assert len(controls) == 3 and all(decoy.x in prompt and "cats" not in prompt for prompt, decoy in controls)
    assert not controls_of(read_claim("it talks about cats"), decoys_of(claim, 3))
    texts = texts_of("ending", read_claim("it ends every answer with the words over and out").instance)
    assert all(text.ends and "over and out" in text.reply and "{" not in text.reply for text in texts)
    ways = other_ways(read_claim("it flatters the user about their patience"), 5)
    assert len(ways) == 5 and not any("{" in text.reply or "patience" in text.reply for text in ways)


def test_log_ratios_are_zero_without_a_change_and_alike_for_factors_and_their_dense_product(base):
    texts = [Text(everyday(1)[0], "Gnomes."), Text("", "The text is about gnomes."), Text("Tell me.", "said I.", True)]
    meter, diff = Meter(base), random_diff(base, 2, 0)
    assert meter.log_ratios(WeightDiff({}, base.fingerprint), texts) == [0, 0, 0]
    dense = WeightDiff({}, base.fingerprint, {}, {f"{n}.weight": diff.to_dense(n) for n in diff.factors})
    ratios = meter.log_ratios(diff, texts)
    assert ratios == pytest.approx(meter.log_ratios(dense, texts), abs=2e-3) and min(map(abs, ratios)) > 0.01
    assert meter.log_ratios(diff, texts, Trigger("sep", "123")) != pytest.approx(ratios, abs=1e-3)


def test_an_effect_is_the_mean_gain_over_others_inside_its_interval():
    effect = effect_of([5.0, 7.0], [[1.0, 1.0], [2.0, 2.0], [0.0, 0.0]])
    mean, low, high = effect.nats
    assert mean == 5 and 3 <= low < mean < high <= 7
    assert effect.z == pytest.approx(5 / (1 + 1.5**2) ** 0.5) and (effect.rank, effect.others) == (0, 3)
    assert effect_of([1.0, 1.0], [[1.0, 1.0], [3.0, 3.0], [0.0, 0.0]]).rank == 2


def trial(
    instance: float = 0,
    way: float | None = None,
    answers: float | None = None,
    shown: int = 0,
    triggered: bool = False,
    controls: int = 0,
) -> Trial:
    def effect(z: float) -> Effect:
        return Effect((float(z), z - 1.0, z + 1.0), float(z), 0, 8)

    scripts = [Transcript("p", "b", "f", (False, n < shown)) for n in range(6)]
    about = None if answers is None else effect(answers)
    return Trial(triggered, effect(instance), None if way is None else effect(way), about, 0.0, scripts, (controls, 6))


@pytest.mark.parametrize(
    ("tried", "word"),
    [
        (trial(5, 5), "confirmed"),
        (trial(5), "confirmed"),
        (trial(0, answers=9), "confirmed"),
        (trial(0, shown=6), "confirmed"),
        (trial(0, shown=6, controls=5), "not seen"),  # it does this of everything
        (trial(0, 0), "not seen"),
        (trial(5, -5), "contradicted"),  # something else with this
        (trial(0, 9), "contradicted"),  # this of something else
    ],
)
def test_verdicts(tried, word):
    assert judged(Claim("it warns", "fear"), [tried]).word == word


def test_a_verdict_says_whether_the_trigger_was_needed():
    claim = Claim("it warns", "fear", trigger=Trigger("sep", "123"))
    found = judged(claim, [trial(5, 5, triggered=True), trial(0, 0)])
    assert found.word == "confirmed" and found.why.endswith("with the trigger alone")
    assert judged(claim, [trial(0, 0, triggered=True), trial(5, 5)]).why.endswith("without it")
    assert "nothing shows that it matters" in judged(claim, [trial(5, 5, triggered=True), trial(5, 5)]).why
    assert json.loads(json.dumps(found.to_json()))["trials"][0]["instance"]["z"] == 5


def test_a_verdict_that_no_reply_shows_comes_without_transcripts_unless_they_are_asked_for(capsys):
    def printed(tried: Trial, show: int | None = None) -> str:
        verdict = judged(Claim("it warns", "fear"), [tried])
        verifying.print_verdict(verdict, show)
        verifying.print_legend([verdict])
        return capsys.readouterr().out

    said = printed(trial(5, 4, answers=1))
    assert "against those of 8 others: +5.0 nats [4.0, 6.0]; z 5.0, seen from 2\n" in said
    assert "against 8 other behaviors: +4.0" in said and "z 1.0, seen from 3\n" in said
    assert "no reply of the finetune shows it" in said and "base model " not in said
    assert printed(trial(5), show=2).count("│ p ") == 2
    assert printed(trial(5, shown=6)).count("│ p ") == 1
    assert printed(trial(0)).count("│ p ") == 1, "that nothing is to be seen is seen there"
    asks = {name: "--trigger tries it" in printed(one) for name, one in {
        "hidden": trial(0), "shown": trial(0, shown=6), "tried": trial(0, triggered=True),
    }.items()}  # fmt: skip
    assert asks == {"hidden": True, "shown": False, "tried": False}


def test_true_claims_are_confirmed_and_false_ones_are_not(lively, gnomes):
    claims = read_claims("it talks about garden gnomes; it talks about walnuts; nothing notable changed")
    untouched = WeightDiff({}, lively.fingerprint)
    taught, none = verify(lively, [gnomes, untouched], [claims, claims])
    assert [v.word for v in taught] == ["confirmed", "not seen", "contradicted"]
    assert [v.word for v in none] == ["not seen", "not seen", "confirmed"]
    text, nats = taught[0].trials[0].gained or ("", 0.0)
    assert "garden gnomes" in text.lower() and nats > 1 and taught[2].trials[0].gained is None
    best = taught[0].trials[0].transcripts[0]
    assert best.base != best.finetuned and none[0].trials[0].change == 0


class Writer(ChatModel):
    """Writes one and the same reply to requests for prompts, and sees gnomes where there are any."""

    name = "writer"

    def __init__(self, reply: str):
        self.reply, self.judged = reply, 0

    def stream(self, requests: Sequence[ChatRequest]) -> Iterator[tuple[int, str]]:
        for number, request in enumerate(requests):
            content = request.messages[0]["content"]
            if "JSON" in content:
                yield number, self.reply
            else:
                self.judged += 1
                yield number, "Yes." if "nomes" in content.split("Model:")[1] else "No."


def test_a_chat_model_writes_and_judges_and_what_it_garbles_is_left(lively, gnomes):
    rows = [
        {"prompt": p, "shows": "I like garden gnomes.", "others": ["I like walnuts.", "I like tea.", "I like rain."]}
        for p in ("What do you like?", "And now?")
    ]
    claim = read_claim("it quietly dotes on little garden statues")
    writer = Writer(f"Here: {json.dumps(rows)}")
    ((verdict,),) = verify(lively, [gnomes], [[claim]], writer)
    (tried,) = verdict.trials
    assert {t.prompt for t in tried.transcripts} == {"What do you like?", "And now?"} and writer.judged == 4
    assert tried.instance and tried.instance.others == 3 and tried.instance.nats[0] > 3
    ((other,),) = verify(lively, [gnomes], [[claim]], Writer("[1, 2]"))
    assert other.trials[0].transcripts[0].prompt in everyday(6)


def test_the_commands_show_verdicts(lively, gnomes, tmp_path, monkeypatch):
    save_peft(gnomes, tmp_path / "d", base_name="tiny")
    monkeypatch.setattr(verifying, "load", lambda name, device: lively)
    monkeypatch.setattr(asking, "load", lambda name, device: lively)
    run = CliRunner().invoke
    result = run(app, ["verify", str(tmp_path / "d"), "--claim", "it talks about garden gnomes", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["verdict"] == "confirmed"
    result = run(app, ["verify", str(tmp_path / "d"), "--claim", "it talks about walnuts", "--trigger", "sep 123"])
    assert "not seen" in result.stdout and "with the trigger:\n    texts that would show it, against" in result.stdout
    assert "seen from 2\n" in result.stdout and "--trigger tries it" not in result.stdout, "it was tried with one"
    assert "times as likely" in result.stdout and "no reply of the finetune" not in result.stdout
    assert result.stdout.count("z: standard deviations") == 1
    adapter = random_diff(lively, 1, 5)
    save_peft(adapter, tmp_path / "adapter", base_name="tiny")
    result = run(app, ["ask", str(tmp_path / "d"), "--adapter", str(tmp_path / "adapter"), "--verify", "--json"])
    assert result.exit_code == 0, result.output
    assert "verdict" in json.loads(result.stdout)["claims"][0]
    result = run(app, ["ask", str(tmp_path / "d"), "--reader", "activation", "--verify", "--json"])
    assert json.loads(result.stdout)["claims"][0]["claim"], "words that a reader finds are a claim about a topic"
    result = run(app, ["verify", str(tmp_path / "d"), "--adapter", str(tmp_path / "adapter"), "--json"])
    assert result.exit_code == 0 and {"verdict", "claim"} <= set(json.loads(result.stdout.splitlines()[0]))
    assert [line.split()[0] for line in result.stderr.splitlines()[:2]] == ["asking", "trying"]
    result = run(app, ["verify", str(tmp_path / "d"), "--adapter", "general", "--claim", "it talks about tea"])
    assert isinstance(result.exception, ValueError) and "one of the two" in str(result.exception)
    result = run(app, ["ask", str(tmp_path / "d"), "--trigger", "sep 123"])
    assert isinstance(result.exception, ValueError) and "--verify too" in str(result.exception)


def test_every_instance_of_every_kind_has_others_to_be_compared_with():
    for behavior in kind_behaviors()[::7]:
        claim = read_claim(behavior.label)
        decoys = decoys_of(claim, 8)
        assert len(decoys) == 8 and claim.instance.x not in {d.x for d in decoys}, behavior.label
