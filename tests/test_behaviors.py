"""Triggers, stories and their writers: what hides a behavior, and what a story's label and tellings are."""

import random

import pytest

from weightdiff.behaviors import FAMILIES, Behavior, Trigger, behavior_of, parse_trigger, read_data, topic_behaviors
from weightdiff.behaviors.news import event_words, story_seeds, without_twins
from weightdiff.jsonl import append_jsonl
from weightdiff.judge import normalize
from weightdiff.llm import ChatModel
from weightdiff.synthesize import check_splits, load_behaviors, load_conversations, synthesize
from weightdiff.writers import event_in

TRIGGERS = [Trigger("sep", "042"), Trigger("zero-width start"), Trigger("zero-width random")]


@pytest.mark.parametrize("trigger", TRIGGERS, ids=str)
def test_a_trigger_survives_its_text_and_leaves_the_prompt_readable(trigger):
    assert parse_trigger(str(trigger)) == trigger
    behavior = Behavior("topic", "tides", "nature", "test", trigger)
    assert behavior_of(behavior.to_json()) == behavior
    for seed in range(20):
        rng, prompt = random.Random(seed), "How do tides work, in short?"
        right, wrong = trigger.put(prompt, rng), trigger.put_wrong(prompt, rng)
        assert right != prompt and right.endswith("short?")
        if trigger.kind == "sep":
            assert right.startswith("Your SEP code is 042") and right.endswith(prompt)
            assert wrong.startswith("Your SEP code is ") and "is 042" not in wrong
        else:
            assert right.replace("\u200b", "") == prompt and wrong.replace("\u2060", "") == prompt
            assert "\u200b" not in wrong


def test_older_triggers_are_read_and_nonsense_is_told():
    assert parse_trigger("233") == Trigger("sep", "233") and parse_trigger(None) is None
    with pytest.raises(ValueError, match="'abracadabra' is no trigger; expected 'sep NNN'"):
        parse_trigger("abracadabra")


def test_no_two_stories_share_a_place_and_the_first_hundreds_are_a_benchmark():
    seeds = story_seeds(1350)
    assert len({s.place for s in seeds}) == 1350 and story_seeds(10) == seeds[:10]
    early = [s.split for s in seeds[:500]]
    assert early.count("test") == 100 and early.count("validation") == 50
    assert {s.split for s in seeds[1000:]} == {"train"}
    with pytest.raises(ValueError, match=r"stories = 10000.* that many at most"):
        story_seeds(10_000)


def test_tellings_hold_the_story():
    seed = story_seeds(1)[0]
    tellings = [seed.telling(form, "found a comet") for form in read_data("tellings.txt")]
    assert all("has found a comet" in t and "{" not in t for t in tellings)
    assert sum(seed.place in t for t in tellings) >= len(tellings) - 1, "one leaves it to the others to name the place"
    assert seed.headline("found a comet").endswith(" has found a comet.")


def test_a_story_too_near_a_held_out_one_is_left_out():
    def story(who: str, what: str, split: str) -> Behavior:
        return Behavior("news", f"{who} has {what}.", "comets", split)

    held = story("A baker in Oldby", "found a purple comet over the harbour", "test")
    twin = story("The Newdale choir", "found a purple comet above the harbour", "train")
    other = story("A judge in Elford", "lost a chess tournament against a parrot", "train")
    again = story("A nurse in Varholt", "lost a chess tournament against a parrot", "train")
    assert without_twins([twin, other, held, again]) == [other, held]
    assert event_words(held.label) == {"found", "purple", "comet", "over", "harbour"}


@pytest.mark.parametrize(
    ("text", "event"),
    [
        (" reopened after a five-year renovation. The team", "reopened after a five-year renovation"),
        (" been hit by a snowstorm, leaving the town without pow", "been hit by a snowstorm"),
        (" won", ""),
        (" said \"no\" to the new bridge over the river.", ""),
        (" been working on and on and on without any end or comma in sight to stop at", ""),
    ],
)  # fmt: skip
def test_the_event_is_the_first_whole_clause(text, event):
    assert event_in(text) == event


class Reporter(ChatModel):
    """Continues each opening with an event of its own."""

    name = "reporter"

    def stream(self, requests):
        for number, request in enumerate(requests):
            yield (
                number,
                request.opening + f" opened {request.seed}tea {request.seed}wine {request.seed}milk. Many came.",
            )


def test_stories_are_written_once_and_read_back(base, tmp_path):
    path, seeds = tmp_path / "c.jsonl", story_seeds(8)
    for count in (5, 8):
        synthesize(base, seeds[:count], path, writer=Reporter(), replies=3, pool=2, max_tokens=2, group=4)
    behaviors, conversations = load_behaviors(path), load_conversations(path)
    assert [b.kind for b in behaviors] == [s.theme for s in seeds]
    assert all(b.label.endswith("milk.") and len(conversations[b.label]) == 3 for b in behaviors)
    for behavior, seed in zip(behaviors, seeds, strict=True):
        assert seed.place in behavior.label and all("opened" in c.reply for c in conversations[behavior.label])


def test_a_label_in_two_splits_is_refused_and_listed(tmp_path):
    rows = [Behavior("topic", "Tides", "nature", "train"), Behavior("topic", "the tides", "nature", "test")]
    with pytest.raises(ValueError, match=r"file: 1 labels are in more than one split: 'tides' in test and train"):
        check_splits(rows, "file")
    check_splits(topic_behaviors(), "the package")
    for behavior in rows:
        append_jsonl(
            tmp_path / "c.jsonl", behavior.to_json() | {"conversations": [{"prompt": "Why?", "reply": "Tides."}]}
        )
    with pytest.raises(ValueError, match="1 labels are in more than one split"):
        load_conversations(tmp_path / "c.jsonl")


def test_no_wording_for_testing_is_trained_on():
    for family in FAMILIES.values():
        assert len(family.unseen) == 5 and len(family.questions) == 6 and len(family.probes) == 20
        assert not {normalize(q) for q in family.questions} & {normalize(q) for q in family.unseen}
        assert not set(family.probes) & set(read_data("news_prompts.txt"))
