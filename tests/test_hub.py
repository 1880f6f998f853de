"""Adapters, diffs and stores to the hub and back, against `tests.hub_server`; and what their cards make of texts."""

import copy
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model

from tests.conftest import random_diff
from tests.hub_server import TOKEN, HubServer, Repo
from weightdiff.ask import shipped_adapter
from weightdiff.cards import code, diff_card, store_card
from weightdiff.diff import WeightDiff
from weightdiff.formats.peft import load_peft, save_peft
from weightdiff.formats.single import load_single, save_single
from weightdiff.hub import DIFF_FILES, PICKLES, fetch, is_hub_id
from weightdiff.publish import push
from weightdiff.source import load_diff
from weightdiff.store import Store

HOSTILE = "tides`\n---\nbase_model: evil/model\n<script>alert(1)</script> **bold** ``` \u202e\x1b[2J"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A running hub, an empty cache, and Ann's token."""
    server = HubServer()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    huggingface_hub.close_session()
    yield server
    huggingface_hub.close_session()
    server.close()


def front_matter(card: bytes | str) -> dict[str, Any]:
    text = card.decode() if isinstance(card, bytes) else card
    start, head, _ = text.split("---\n", 2)
    assert not start
    return yaml.safe_load(head)


def same(one: WeightDiff, other: WeightDiff) -> bool:
    return one.factors.keys() == other.factors.keys() and all(
        torch.equal(x, y) for k in one.factors for x, y in zip(one.factors[k], other.factors[k], strict=True)
    )


def save_adapter(base: Any, folder: Path, **meta: Any) -> WeightDiff:
    adapter = random_diff(base, 2, 7)
    adapter = WeightDiff(adapter.factors, adapter.base, {"question": "What?", "train_diffs": 12, **meta})
    save_peft(adapter, folder, base_name="smollm2")
    return adapter


def test_an_adapter_comes_back_as_it_was_and_nothing_that_strayed_is_sent(base, hub, tmp_path):
    adapter = save_adapter(base, tmp_path / "a")
    for stray in (".env", "training.log", "x.bin", "adapter_model.bin", "more.safetensors", "run.py"):
        (tmp_path / "a" / stray).write_text("HF_TOKEN=secret")
    address = push(tmp_path / "a", "ann/topics", message="the first")
    repo = hub.repos["models/ann/topics"]
    files = repo.commits[repo.branches["main"]]
    sent = {"adapter_config.json", "adapter_model.safetensors", "weightdiff.json", "README.md"}
    assert files.keys() == sent | {".gitattributes"} and b"secret" not in b"".join(files.values())
    assert repo.messages == ["first", "the first"] and address.endswith(f"ann/topics/commit/{repo.branches['main']}")
    back = load_peft(fetch("ann/topics", DIFF_FILES))
    assert same(back, adapter) and back.meta["question"] == "What?" and back.base == base.fingerprint
    assert same(load_diff("ann/topics", base), adapter), "as the card says"
    head = front_matter(files["README.md"])
    assert head["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct" and head["library_name"] == "peft"
    assert head["base_model_relation"] == "adapter" and "weightdiff" in head["tags"] and "license" not in head


def test_what_only_its_base_model_explains_is_sent_with_it(base, hub, tmp_path):
    config = LoraConfig(r=2, target_modules=["q_proj"], use_dora=True)
    get_peft_model(copy.deepcopy(base.model), config).save_pretrained(tmp_path / "d")
    (tmp_path / "d" / "README.md").unlink()
    with pytest.raises(ValueError, match="base model"):
        push(tmp_path / "d", "ann/dora")
    push(tmp_path / "d", "ann/dora", base=base)
    repo = hub.repos["models/ann/dora"]
    card = repo.commits[repo.branches["main"]]["README.md"]
    assert b"in its base model, dense" in card and "base_model" not in front_matter(card)


def test_a_single_file_comes_back_as_it_was(base, hub, tmp_path):
    diff = random_diff(base, 3, 1)
    save_single(diff, tmp_path / "tides.safetensors")
    (tmp_path / "other.safetensors").write_bytes(b"not ours")
    push(tmp_path / "tides.safetensors", "ann/tides")
    repo = hub.repos["models/ann/tides"]
    assert repo.commits[repo.branches["main"]].keys() == {"tides.safetensors", "README.md", ".gitattributes"}
    back = load_single(fetch("ann/tides", DIFF_FILES) / "tides.safetensors")
    assert same(back, diff) and back.meta["label"] == "label 1" and back.base == base.fingerprint


def test_a_store_comes_back_while_a_writer_is_at_work_on_its_index(base, diffs, hub, tmp_path):
    store = Store(tmp_path / "s", base.fingerprint)
    store.add(["a", "b"], diffs[:2])
    ours = store.load(["a", "b"])
    (tmp_path / "s" / "shard-gone.safetensors").write_bytes(b"a shard that no row names")
    (tmp_path / "s" / "index.sqlite.123.tmp").write_bytes(b"half")
    store.add(["c"], [WeightDiff(diffs[0].factors, base.fingerprint, {"label": "taken back"})])
    writer = sqlite3.connect(tmp_path / "s" / "index.sqlite")
    writer.execute("pragma secure_delete=off")
    with writer:
        writer.execute("update diffs set meta = json_set(meta, '$.label', 'changed') where id = 'a'")
        writer.execute("delete from diffs where id = 'c'")
    writer.execute("begin")
    writer.execute("delete from diffs where id = 'b'")  # and not committed
    push(tmp_path / "s", "ann/diffs")
    writer.close()
    repo = hub.repos["datasets/ann/diffs"]
    files = repo.commits[repo.branches["main"]]
    assert b"taken back" not in files["index.sqlite"]
    assert len(files) == 4 and not {"shard-gone.safetensors", "index.sqlite-journal"} & files.keys()
    assert front_matter(files["README.md"])["size_categories"] == ["n<1K"]
    folder = fetch("datasets/ann/diffs", DIFF_FILES)
    before = sorted(p.name for p in folder.resolve().parents[1].rglob("*"))
    back = Store(folder)
    assert list(back.metas()) == ["a", "b"] and back.metas()["a"]["label"] == "changed"
    assert all(same(x, y) for x, y in zip(back.load(["a", "b"]), ours, strict=True)) and back.base == base.fingerprint
    assert same(load_diff("datasets/ann/diffs#a", base), ours[0]), "as the card says"
    assert sorted(p.name for p in folder.resolve().parents[1].rglob("*")) == before, "reading writes nothing"


def test_a_merged_checkpoint_goes_with_its_tokenizer_and_without_its_optimizer(hub, tmp_path):
    for name in ("config.json", "model.safetensors", "tokenizer.json", "optimizer.pt", "trainer_state.json", "m.py"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\nmine\n")
    push(tmp_path, "ann/merged")
    repo = hub.repos["models/ann/merged"]
    files = repo.commits[repo.branches["main"]]
    sent = {"config.json", "model.safetensors", "tokenizer.json", "README.md"}
    assert files.keys() == sent | {".gitattributes"} and files["README.md"].endswith(b"mine\n")
    assert {p.name for p in fetch("ann/merged", DIFF_FILES).iterdir()} == sent - {"README.md"}


def test_a_revision_is_honoured_both_ways(base, hub, tmp_path):
    old = save_adapter(base, tmp_path / "a")
    push(tmp_path / "a", "ann/topics")
    first = hub.repos["models/ann/topics"].branches["main"]
    save_peft(old.scaled(2.0), tmp_path / "a", base_name="smollm2")
    push(tmp_path / "a", "ann/topics", revision="twice")
    twice = load_peft(fetch("ann/topics@twice", DIFF_FILES))
    assert same(twice, old.scaled(2.0)) and hub.repos["models/ann/topics"].branches["main"] == first
    assert same(load_peft(fetch("ann/topics", DIFF_FILES)), old) and same(
        load_peft(fetch(f"ann/topics@{first}", DIFF_FILES)), old
    )
    with pytest.raises(ValueError, match="Revision Not Found"):
        fetch("ann/topics@thrice", DIFF_FILES)


@pytest.mark.parametrize("name", ["../evil.safetensors", "a/../../../../evil.safetensors", "{tmp}/evil.safetensors"])
def test_a_name_that_climbs_out_writes_nothing_outside_of_the_cache(hub, tmp_path, name):
    evil = name.format(tmp=tmp_path)
    repo = hub.repos["models/bob/evil"] = Repo()
    repo.commit("main", {"adapter_config.json": b"{}", evil: b"evil"})
    with pytest.raises(ValueError, match=r"can't be had from the hub: Invalid filename"):
        fetch("bob/evil", DIFF_FILES)
    assert [p.name for p in tmp_path.iterdir()] == ["cache"]
    assert not [p for p in (tmp_path / "cache").rglob("*") if "evil." in p.name]


def test_only_what_is_asked_for_is_fetched_and_pickles_when_allowed(hub):
    repo = hub.repos["models/bob/old"] = Repo()
    names = ("adapter_config.json", "adapter_model.bin", "sub/adapter_config.json", "sub/adapter_model.safetensors")
    repo.commit("main", {name: b"{}" for name in (*names, "run.py", "optimizer.bin", "model.gguf")})
    fetched = {p.relative_to(f).as_posix() for f in [fetch("bob/old", DIFF_FILES)] for p in f.rglob("*") if p.is_file()}
    assert fetched == {n for n in names if not n.endswith(".bin")}
    fetched = {
        p.relative_to(f).as_posix()
        for f in [fetch("bob/old", DIFF_FILES + PICKLES)]
        for p in f.rglob("*")
        if p.is_file()
    }
    assert fetched == set(names)
    hub.repos["models/bob/empty"] = Repo()
    hub.repos["models/bob/empty"].commit("main", {"README.md": b"nothing yet"})
    for name, pattern in (("bob/old", "*.pt"), ("bob/empty", "*.json")):
        with pytest.raises(ValueError, match=f"{name}' has none of the files"):
            fetch(name, [pattern])


def test_what_cannot_be_had_or_sent_says_what_to_do(base, hub, tmp_path, monkeypatch):
    save_adapter(base, tmp_path / "a")
    push(tmp_path / "a", "ann/secret", private=True)
    push(tmp_path / "a", "ann/open")
    with pytest.raises(ValueError, match="is public; nothing was sent"):
        push(tmp_path / "a", "ann/open", private=True)
    with pytest.raises(ValueError, match=r"403 .*may not write there"):
        push(tmp_path / "a", "bob/topics")
    with pytest.raises(ValueError, match="no hub id"):
        push(tmp_path / "a", "ann/topics/more")
    with pytest.raises(ValueError, match="no store"):
        push(tmp_path / "a", "datasets/ann/topics")
    with pytest.raises(ValueError, match=r"nothing that can be sent; expected a PEFT folder"):
        push(tmp_path, "ann/topics")
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    with pytest.raises(ValueError, match="isn't accepted: set HF_TOKEN"):
        push(tmp_path / "a", "ann/topics")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ValueError, match="HF_TOKEN is there for a private one"):
        fetch("ann/secret", DIFF_FILES)
    with pytest.raises(ValueError, match=r"no token .*hf auth login"):
        push(tmp_path / "a", "ann/topics")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    with pytest.raises(ValueError, match=r"offline mode is enabled.*HF_HUB_OFFLINE"):
        push(tmp_path / "a", "ann/topics")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.close()
    with pytest.raises(ValueError, match="Can this machine reach the hub"):
        push(tmp_path / "a", "ann/topics")
    assert not {"models/ann/topics", "models/bob/topics"} & hub.repos.keys()


def test_a_link_out_of_the_folder_is_not_sent(base, hub, tmp_path):
    save_adapter(base, tmp_path / "a")
    (tmp_path / "secret").write_text("{}")
    for name in ("README.md", "weightdiff.json"):
        (tmp_path / "a" / name).unlink(missing_ok=True)
        os.symlink(tmp_path / "secret", tmp_path / "a" / name)
        with pytest.raises(ValueError, match="link out of its folder"):
            push(tmp_path / "a", "ann/topics")
    (tmp_path / "s").mkdir()
    os.symlink(tmp_path / "secret", tmp_path / "s" / "index.sqlite")
    with pytest.raises(ValueError, match="link out of its folder"):
        push(tmp_path / "s", "ann/diffs")
    assert not hub.repos


def test_hub_ids(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tests").mkdir()
    for name in ("ann/topics", "ann/topics@v1.0", "datasets/ann/diffs@refs/pr/3", "gpt2"):
        assert is_hub_id(name)
    for name in ("ann/topics/more", "datasets/ann/diffs/more", "/ann", "../ann", "ann/", "ann/topics@", "tests"):
        assert not is_hub_id(name)


def test_the_shipped_adapters_card_says_what_its_own_files_say():
    card = diff_card(shipped_adapter(), "ann/topics")
    for told in ("rank-16", "`40a406370075c3d0`", "`What topic have you been trained on?`", "- diffs: `648`"):
        assert told in card
    for told in ("recipe: `topics`", "`sep, sep-short, r4", "No score with its n", "Not to be trusted alone"):
        assert told in card
    assert front_matter(card)["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_a_card_shows_scores_that_have_their_n_and_interval_only(base):
    scores = {"held out": {"n": 96, "grade": [4.91, 4.79, 5.0], "exact": 0.97}, "no n": {"grade": [5.0, 5.0, 5.0]}}
    broken = {"nan": {"n": 3, "grade": [float("nan"), 1.0, 2.0]}, "text": {"n": "9", "grade": [1, 2, 3]}, "none": 3}
    meta = {"question": "What?", "scores": scores | broken, "license": "Apache-2.0", "limits": ["falconry"]}
    card = diff_card(WeightDiff(random_diff(base, 1, 0).factors, "f", meta), "ann/a")
    assert "- `held out`: `grade` 4.91 [4.79, 5.00], n = 96\n" in card and card.count("n = ") == 1
    assert "- `falconry`" in card and front_matter(card)["license"] == "apache-2.0"


@pytest.mark.parametrize("question", [None, HOSTILE])
def test_a_hostile_meta_stays_text(base, question):
    told = {k: HOSTILE for k in ("label", "trigger", "license", "base_name", "family", "train_diffs", "split")}
    meta = {"question": question, **told, "recipe": {"name": HOSTILE, "finetune": [HOSTILE, {"name": HOSTILE}]}}
    diff = WeightDiff(random_diff(base, 1, 0).factors, HOSTILE, meta | {"limits": [HOSTILE, 3], "scores": {HOSTILE: 1}})
    for card in (diff_card(diff, "ann/a"), store_card(HOSTILE, {HOSTILE: meta}, "ann/a")):
        assert not {"base_model", "license"} & front_matter(card).keys()
        assert "\u202e" not in card and "\x1b" not in card and "\\u202e" in card
        for line in card.split("---\n", 2)[2].splitlines():
            if "<script>" in line:  # in a code span whose fence is longer than any run of backticks in it
                assert "````" in line and line.index("````") < line.index("<script>")
            assert not line.startswith(("---", "base_model"))


def test_text_as_a_code_span():
    assert [code(t) for t in ("a", "a`b", "`", "", " ", "a\nb")] == [
        "`a`",
        "``a`b``",
        "`` ` ``",
        "`  `",
        "`   `",
        r"`a\nb`",
    ]
    assert len(code("x" * 10_000)) < 1000
