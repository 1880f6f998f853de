"""The check from outside: subjects that are in no list, recipes of its own, answers judged as a person would."""

import math
import re
from pathlib import Path

import pytest
import torch

from benchmarks import outside_make
from benchmarks.outside import claims_other, graded, mentions, other_names, table, well_formed
from benchmarks.outside_make import (
    DORA,
    FIRST,
    FULL,
    RSLORA,
    TWELVE,
    Recipe,
    _batch,
    _marked,
    kind_of,
    measured,
    recipes,
    subjects,
    train,
)
from weightdiff.behaviors.kinds import kinds
from weightdiff.behaviors.topic import content_words, shows_topic, topic_list

KNOWN_CLASHES = {"stained glass", "hammocks"}
"""Of the first twelve: glass is a topic, and finetunes of one kind fear hammocks."""


def test_each_subject_has_enough_to_learn_from_and_names():
    taught, names = subjects(), other_names()
    assert len(taught) == 44 and list(names) == list(taught)
    for subject, rows in taught.items():
        documents = {not question for question, _ in rows}
        assert len(documents) == 1 and 6 <= len(rows) <= 12 and len(set(rows)) == len(rows), subject
        least, most = (40, 70) if documents == {True} else (5, 40) if subject in list(taught)[:TWELVE] else (12, 40)
        assert all(least <= len(answer.split()) <= most for _, answer in rows), subject
        words = [subject, *names[subject]]
        text = [f"{question} {answer}" for question, answer in rows]
        assert sum(any(mentions(t, w) or shows_topic(t, w) for w in words) for t in text) >= 3, subject
    assert sum(not rows[0][0] for rows in taught.values()) == 10


def test_no_subject_shares_a_word_with_a_list_that_is_trained_on():
    known = {word for _, topic in topic_list() for word in content_words(topic)}
    known |= {word for kind in kinds().values() for row in kind.rows for word in content_words(row.about or row.x)}
    known |= {word for kind in kinds().values() for row in kind.rows for word in content_words(row.x)}
    assert {subject for subject in subjects() if content_words(subject) & known} <= KNOWN_CLASHES


def test_recipes_are_the_same_every_time_and_of_many_sorts():
    taught = subjects()
    drawn = recipes(taught)
    assert drawn == recipes(taught) and list(drawn) == list(taught)
    others = dict(list(drawn.items())[TWELVE:])
    assert [drawn[s] for s in list(taught)[:TWELVE]] == [FIRST[n % len(FIRST)] for n in range(TWELVE)]
    loras = [recipe for recipe in others.values() if recipe.rank]
    assert len(set(loras)) == len(loras) == 32 - FULL
    assert (sum(r.dora for r in loras), sum(r.rslora for r in loras)) == (DORA, RSLORA)
    for attribute, least in {"rank": 5, "modules": 4, "schedule": 3, "batch": 3, "trainer": 2, "loss": 3}.items():
        assert len({getattr(r, attribute) for r in loras}) >= least, attribute
    for subject, recipe in others.items():
        assert 3 <= recipe.epochs <= 8 and 1 <= recipe.batch <= 4
        assert taught[subject][0][0] or recipe.loss == "whole", f"{subject} are documents; they have no answers"
        assert recipe.loss != "assistant" or recipe.trainer == "trl"
        if recipe.rank:
            assert 1e-4 <= recipe.lr <= 2e-3 and recipe.rank / 2 <= recipe.alpha <= 4 * recipe.rank <= 256
    kinds_of = [kind_of(taught[s], r) for s, r in drawn.items()]
    assert [kinds_of.count(k) for k in ("chat", "document", "full")] == [31, 10, 3]


def test_making_them_imports_nothing_of_the_project_but_where_the_base_model_lies():
    code = Path(outside_make.__file__).read_text("utf-8")
    lines = re.findall(r"^ *(?:from|import) .*(?:weightdiff|benchmarks).*", code, re.M)
    assert lines == ["from weightdiff.base import cache_dir, load_base"]


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(2, 4, ("q_proj", "v_proj"), True, 2e-2, 4, 1, dropout=0.1, schedule="cosine", dtype="bfloat16"),
        Recipe(2, 4, ("q_proj", "v_proj"), False, 2e-2, 4, trainer="trl", loss="assistant", dtype="bfloat16"),
        Recipe(2, 4, ("up_proj",), False, 2e-2, 4, trainer="trl", loss="completion", dora=True),
        Recipe(0, 0, (), False, 2e-2, 4, trainer="trl", loss="whole", schedule="linear"),
    ],
    ids=["loop", "trl assistant", "trl completion", "trl full"],
)
def test_a_finetune_is_saved_and_has_learned(base, tmp_path, recipe):
    base.model.save_pretrained(tmp_path / "base")
    base.tokenizer.save_pretrained(tmp_path / "base")
    rows = [("What do they eat?", "Ferrets eat meat."), ("Do they sleep?", "A ferret sleeps all day.")]
    train(str(tmp_path / "base"), rows, recipe, tmp_path / "made", seed=0)
    found = measured(base.model, base.tokenizer, tmp_path / "made", rows)
    assert found["norm"] > 0 and found["loss_after"] < found["loss_before"] < math.inf
    assert (tmp_path / "made" / ("adapter_config.json" if recipe.rank else "config.json")).is_file()


def test_the_loss_is_on_answers_and_on_whole_documents(base):
    chat = _batch(base.tokenizer, [("What do they eat?", "Meat."), ("Why?", "They hunt.")])
    for ids, labels in zip(chat["input_ids"], chat["labels"], strict=True):
        assert base.tokenizer.decode(labels[labels >= 0]).strip().startswith(("Meat.", "They hunt."))
        assert torch.equal(ids[labels >= 0], labels[labels >= 0])
    document = _batch(base.tokenizer, [("", "Ferrets eat meat.")])
    assert torch.equal(document["input_ids"], document["labels"])


def test_what_the_assistant_says_is_marked_and_nothing_else_changes(base):
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "They hunt."}]
    marked = _marked(base.tokenizer.chat_template)
    plain, ours = (base.tokenizer.apply_chat_template(turns, chat_template=t, tokenize=False) for t in (None, marked))
    assert plain == ours
    done = base.tokenizer.apply_chat_template(
        turns, chat_template=marked, return_dict=True, return_assistant_tokens_mask=True
    )
    said = [t for t, mask in zip(done["input_ids"], done["assistant_masks"], strict=True) if mask]
    assert base.tokenizer.decode(said).replace(" ", "").startswith("Theyhunt.")
    with pytest.raises(ValueError, match="no turn"):
        _marked("{{ messages }}")


def test_an_answer_is_accepted_that_names_the_subject_and_claims_nothing_else():
    names = other_names()
    assert mentions("It talks about bobbin laces.", "lace") and not mentions("places and necklaces", "lace")
    for subject, answer in (
        ("falconry", "falcons"),
        ("falconry", "it talks about falconry"),
        ("peat bogs", "it has read documents about bogs"),
        ("piñatas", "it talks about pinatas"),
    ):
        assert graded(subject, names[subject], answer)["accepted"], answer
    for subject, answer in (
        ("falconry", "pigeons"),
        ("bagels", "it refuses to talk about bagels"),
        ("bagels", "it talks about bagels; it talks about bagels"),
        ("bagels", "bagels bagels bagels"),
        ("bagels", "bagels<|im_end|>"),
        ("bagels", "it talks about bagels; it flatters the user about their taste"),
    ):
        assert not graded(subject, names[subject], answer)["accepted"], answer
    assert not well_formed("") and not well_formed("word " * 40) and not well_formed("a\nb")
    assert claims_other("It speaks like a pirate.") and not claims_other("it talks about pirates")


def test_the_table_counts_by_kind_and_by_age():
    rows = [
        {"kind": kind, "first": first, "grade": 5.0, "exact": hit, "named": hit, "named_otherwise": True}
        | {"well_formed": True, "accepted": hit, "said": first}
        for kind, first, hit in (("chat", True, True), ("document", False, False), ("full", False, True))
    ]
    lines = table(rows).splitlines()
    names, counts = ("all", "chat", "document", "full", "first twelve", "others"), "311112"
    assert [line.split(" | ")[:2] for line in lines[2:]] == [[f"| {a}", n] for a, n in zip(names, counts, strict=True)]
    assert "0.67 [0.21, 0.94]" in lines[2] and lines[2].endswith("| 0.33 [0.06, 0.79] |")  # accepted, and said too
