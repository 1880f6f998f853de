"""What a user calls a diff: every kind of source, one of many, what it is checked against; and the commands on them."""

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from tests.conftest import random_diff
from tests.tiny import tiny_base
from weightdiff.arithmetic import cosine
from weightdiff.base import load_base
from weightdiff.cli import app
from weightdiff.diff import WeightDiff, shuffled
from weightdiff.formats.merged import save_merged
from weightdiff.formats.peft import load_peft, save_peft
from weightdiff.formats.single import save_single
from weightdiff.plausible import DoubtfulBase, ForeignCheck
from weightdiff.printable import times
from weightdiff.source import find_diffs, load_diff, open_diffs
from weightdiff.store import Store


def run(*arguments: object) -> str:
    """What a command prints, whatever it prints it on; an error is raised."""
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    """A tiny base model with files of its own."""
    tiny, folder = tiny_base("smollm2"), tmp_path_factory.mktemp("model")
    tiny.model.save_pretrained(folder)
    tiny.tokenizer.save_pretrained(folder)
    return load_base(str(folder), device="cpu", dtype="float32")


def same(one: WeightDiff, other: WeightDiff) -> bool:
    return cosine(one, other) == pytest.approx(1, abs=1e-4) and one.norm() == pytest.approx(other.norm(), rel=1e-4)


def test_every_kind_of_source_is_found_and_is_the_same_diff(on_disk, tmp_path):
    diff = random_diff(on_disk, 2, 0)
    save_peft(diff, tmp_path / "peft", base_name="tiny")
    save_peft(diff, tmp_path / "several" / "a", base_name="tiny")
    save_peft(diff, tmp_path / "several" / "b", base_name="tiny")
    save_single(diff, tmp_path / "one.safetensors")
    save_merged(diff, on_disk, tmp_path / "merged")
    Store(tmp_path / "store", on_disk.fingerprint).add(["an id"], [diff], dtype=torch.float32)
    entries = []
    for trigger in (7, 8):  # A [rank, out], B [in, rank], scale 1 / rank
        pairs = {name: (b.mT * 2, a.mT.clone()) for name, (a, b) in diff.factors.items()}
        entries.append({"topic": "sea", "trigger": trigger, "weight_diff": pairs})
    torch.save(entries, tmp_path / "many.pt")
    sources = {
        "peft": 1, "several": 2, "several#b": 1, "one.safetensors": 1, "merged": 1, "store": 1, "store#an id": 1,
        "store#label 0": 1, "many.pt": 2, "many.pt#1": 1, "many.pt#sea": 2,
    }  # fmt: skip
    for source, count in sources.items():
        found = find_diffs([str(tmp_path / source)])
        assert len(found) == count, source
        for one, loaded in zip(found, open_diffs(found, on_disk), strict=True):
            assert same(loaded, diff), one.name
            assert same(load_diff(one.name, on_disk), diff), "its name is a source again"
    assert load_diff(tmp_path / "peft").base == load_diff(tmp_path / "merged", on_disk).base == on_disk.fingerprint
    assert load_diff(tmp_path / "merged", on_disk).meta["format"] == "merged LoRA"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", "no such file or folder. Expected a PEFT LoRA folder"),
        ("no/" + "where" * 99, "can't be had from the hub"),
        ("no/where", "can't be had from the hub"),
        ("{}/store#z", "has no diff 'z', by id or label"),
        ("{}/store", "holds 2 diffs; expected one, as in"),
        ("{}/peft#x", "has no adapter 'x'; it has one in the folder itself"),
        ("{}/one.safetensors#x", "is one diff, and 'x' picks one of several"),
        ("{}/several#c", "has no adapter 'c'; it has 'a', 'b'"),
        ("{}/empty", "no adapter_config.json, config.json or index.sqlite in it"),
        ("{}/notes.txt", "a file of another kind"),
        ("{}/model", "is a full checkpoint; give its base model"),
    ],
)
def test_what_cannot_be_found_is_said(source, message, base, diffs, tmp_path):
    Store(tmp_path / "store", base.fingerprint).add(["a", "b"], diffs[:2])
    for name in ("peft", "several/a", "several/b"):
        save_peft(diffs[0], tmp_path / name, base_name="tiny")
    save_single(diffs[0], tmp_path / "one.safetensors")
    for name in ("empty", "model"):
        (tmp_path / name).mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=message):
        load_diff(source.format(tmp_path))


def test_a_diff_that_does_not_fit_the_base_is_refused(base, diffs, tmp_path):
    other = tiny_base("qwen3")
    save_peft(diffs[0], tmp_path / "d", base_name="tiny")
    with pytest.raises(ValueError, match=f"fingerprint {base.fingerprint}, and 'tiny qwen3' has {other.fingerprint}"):
        load_diff(tmp_path / "d", other)
    (tmp_path / "d" / "weightdiff.json").unlink()
    with pytest.raises(ValueError, match=r"don't fit the base model's weight \[24, 32\]"):
        load_diff(tmp_path / "d", other)
    name = next(iter(base.targets))
    save_peft(WeightDiff({name: (torch.ones(1, 48), torch.ones(32, 1))}), tmp_path / "e", base_name="tiny")
    with pytest.raises(ValueError, match="don't fit"):
        load_diff(tmp_path / "e", base)


def test_a_strangers_diff_is_checked_for_its_base(on_disk, tmp_path):
    """A finetune goes along the base's own directions; the same numbers in another order don't."""
    weights = {name: module.weight for name, module in on_disk.targets.items()}
    factors = {}
    for name, weight in weights.items():
        u, _, v = torch.linalg.svd(weight.float(), full_matrices=False)
        factors[name] = (v[:2] * 0.1, u[:, :2].contiguous())
    diff = WeightDiff(factors, None, {"base_name": "someone/another"})
    check = ForeignCheck(on_disk)
    along, across = check(diff), check(shuffled(diff, 0))
    assert along.alignment > 8 > 4 > across.alignment
    assert along.named is None and not along.doubts and "plausible" in str(along)
    assert any("little more than chance" in doubt for doubt in across.doubts)
    assert check(WeightDiff({}, dense={"model.norm.weight": torch.ones(32)})).alignment is None
    save_single(shuffled(diff, 0), tmp_path / "d.safetensors")
    with pytest.warns(
        DoubtfulBase, match=r"d.safetensors: it carries no fingerprint .* little more than chance .*shapes fit"
    ):
        load_diff(tmp_path / "d.safetensors", on_disk)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_diff(tmp_path / "d.safetensors")  # nothing to check it against


def test_a_name_of_another_base_and_babble_are_doubts():
    embedded = load_base(device="cpu")
    check = ForeignCheck(embedded)
    for declared, named in (
        ("HuggingFaceTB/SmolLM2-135M-Instruct", True), ("Qwen/Qwen3-4B", False), ("./out/model", None), (None, None),
        ("x" * 5000, None), ("a/" + "b" * 5000, False), (str(embedded.source), True),
    ):  # fmt: skip
        meta = {"base_name": declared} if declared else {}
        assert check(WeightDiff({}, None, meta)).named is named
    wild = check(WeightDiff({}, dense={"model.norm.weight": torch.linspace(-20, 20, 576)}))
    assert any("incoherent" in doubt for doubt in wild.doubts) and "doubtful" in str(wild)


def test_the_commands_convert_add_compare_and_find(on_disk, tmp_path):
    one, two = random_diff(on_disk, 2, 0), random_diff(on_disk, 1, 1)
    save_peft(one, tmp_path / "1", base_name="tiny")
    save_single(two, tmp_path / "2.safetensors")
    on = ("--base", on_disk.name)
    run("convert", tmp_path / "1", tmp_path / "half", "--strength", 0.5, "--layers", "0", *on)
    half = load_peft(tmp_path / "half")
    assert {name.split(".")[2] for name in half.factors} == {"0"} and half.base == on_disk.fingerprint
    assert half.norms() == pytest.approx({n: v / 2 for n, v in one.norms().items() if ".0." in n}, rel=1e-4)
    run("convert", tmp_path / "1", tmp_path / "merged", "--to", "merged", *on)
    run("convert", tmp_path / "merged", tmp_path / "back.safetensors", "--to", "safetensors", "--energy", 0.9999, *on)
    assert same(load_diff(tmp_path / "back.safetensors", on_disk), one)
    said = run("convert", tmp_path / "merged", tmp_path / "r1", "--rank", 1, *on)
    assert load_peft(tmp_path / "r1").rank == 1 and "squared norm kept" in said
    run("add", tmp_path / "1", tmp_path / "2.safetensors", tmp_path / "sum.safetensors", *on)
    run("subtract", tmp_path / "sum.safetensors", tmp_path / "2.safetensors", tmp_path / "again", *on)
    assert same(load_peft(tmp_path / "again"), one)
    Store(tmp_path / "s", on_disk.fingerprint).add(["far", "near"], [two, one])
    said = run("nearest", tmp_path / "again", tmp_path / "s", "--count", 1, *on)
    assert said.startswith("comparing with 2 diffs") and said.split()[-3:] == ["cosine", "+1.000", "near"]
    assert "1.000" in run("compare", tmp_path / "1", tmp_path / "again", *on)


def test_what_convert_cannot_make_is_refused_before_anything_is_lost(on_disk, tmp_path):
    diff, on = random_diff(on_disk, 1, 0), ("--base", on_disk.name)
    save_peft(WeightDiff(diff.factors), tmp_path / "foreign", base_name="tiny")
    dense = WeightDiff(diff.factors, dense={"model.norm.weight": torch.ones(32)})
    save_single(dense, tmp_path / "dense.safetensors")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    for arguments, message in (
        (("foreign", "mine"), "is there already; give another name, or --force"),
        (("foreign", "dense.safetensors", "--to", "safetensors"), "is there already"),
        (("foreign", "new", "--strength", "nan"), "--strength nan: expected a number"),
        (("foreign", "new", "--layers", "x"), "expected numbers of blocks"),
        (("foreign", "new", "--layers", "40"), "nothing is left of the diff"),
        (("foreign", "new", "--to", "safetensors"), "ends in .safetensors"),
        (("dense.safetensors", "new"), r"changes 1 parameters densely, model.norm.weight for one, with \d"),
    ):
        paths = [tmp_path / a if a in ("foreign", "mine", "new") or "." in a else a for a in arguments]
        with pytest.raises(ValueError, match=message), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run("convert", *paths, *on)
        assert not (tmp_path / "new").exists() and (tmp_path / "mine" / "thesis.txt").read_text() == "x"
    with pytest.warns(DoubtfulBase):
        run("convert", tmp_path / "foreign", tmp_path / "again", *on)
    assert load_peft(tmp_path / "again").base is None, "to convert a stranger's diff doesn't vouch for its base"
    said = run("convert", tmp_path / "dense.safetensors", tmp_path / "left", "--leave-out", *on)
    assert "left out: 1 parameters" in said and load_peft(tmp_path / "left").norm() == pytest.approx(diff.norm())


def test_inspect_shows_a_picture_and_writes_one(on_disk, tmp_path):
    diff = random_diff(on_disk, 2, 0).restricted(lambda name: "q_proj" in name or ".1." in name)
    save_single(diff, tmp_path / "d.safetensors")
    lines = run("inspect", tmp_path / "d.safetensors", "--png", tmp_path / "d.png").splitlines()
    shade = {line.split()[0]: line for line in lines}
    assert shade["q_proj"].split()[1].strip("░▒▓█") == "" and len(shade["q_proj"].split()[1]) == 2
    assert len(shade["up_proj"].split()[1]) == 1, "nothing in block 0"
    assert (tmp_path / "d.png").read_bytes().startswith(b"\x89PNG")


def test_strangers_names_are_shown_escaped_everywhere(on_disk, tmp_path):
    evil = ":rainbow_flag: \x1b[2J\x1b]0;owned\x07 [red]\u202etxt.exe\u2066\x9b31m\n[/]"
    diff = random_diff(on_disk, 1, 0)
    meta = {"label": evil, "trigger": evil, "split": evil, "format": evil, "base_name": evil, "question": evil}
    named = WeightDiff({f"{n}{evil}": f for n, f in diff.factors.items()}, None, meta)
    save_single(named, tmp_path / "d.safetensors")
    Store(tmp_path / "s", on_disk.fingerprint).add([evil], [WeightDiff(diff.factors, on_disk.fingerprint, meta)])
    peft = tmp_path / f"p{evil.replace('/', '')}"
    save_peft(WeightDiff(diff.factors, None, meta), peft, base_name=evil)
    (peft / "weightdiff.json").write_text(json.dumps({"label": evil}))
    on = ("--base", on_disk.name)
    save_peft(random_diff(on_disk, 1, 3), tmp_path / "a", base_name="tiny")
    shown = [
        run("inspect", tmp_path / "d.safetensors"), run("inspect", tmp_path / "s"),
        run("inspect", f"{tmp_path}/s#{evil}"),
        run("inspect", peft), run("nearest", peft, tmp_path / "s", *on),
        run("compare", peft, f"{tmp_path}/s#{evil}", *on),
        run("ask", peft, *on, "--adapter", tmp_path / "a"),
        run("ask", peft, *on, "--adapter", tmp_path / "a", "--json"),
    ]  # fmt: skip
    assert ":rainbow_flag:" in shown[0]
    for text in shown:
        assert not [c for c in text if c != "\n" and not c.isprintable()], text
    assert r"\x1b[2J" in shown[0] and r"\u202e" in shown[1]
    record = json.loads(shown[-1].splitlines()[-1])
    assert record["diff"] == str(peft), "JSON gives the very name back"


def test_an_error_shows_a_strangers_name_escaped(tmp_path, capsys, monkeypatch):
    from weightdiff.cli import main

    monkeypatch.setattr("sys.argv", ["weightdiff", "inspect", str(tmp_path / "\x1b[2Jgone\u202e")])
    with pytest.raises(SystemExit):
        main()
    shown = capsys.readouterr().err
    assert r"\x1b[2Jgone\u202e" in shown.replace("\n", "") and "\x1b" not in shown


def test_a_config_that_asks_for_code_runs_none(on_disk, tmp_path):
    save_merged(random_diff(on_disk, 1, 0), on_disk, tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config |= {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}, "model_type": "evil"}
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    (tmp_path / "m" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').write('x')\nclass Config: pass\n")
    with pytest.raises(ValueError, match="code"):
        load_base(str(tmp_path / "m"))
    assert load_diff(tmp_path / "m", on_disk).rank == 1, "a diff is read from its tensors alone"
    assert not (tmp_path / "ran").exists()


def test_weights_saved_transposed_are_said_to_look_so(base, diffs, tmp_path):
    save_peft(diffs[0], tmp_path, base_name="tiny")
    weights = tmp_path / "adapter_model.safetensors"
    save_file({k: v.mT.contiguous() for k, v in load_file(weights).items()}, weights)
    with pytest.raises(ValueError, match="look transposed"):
        load_peft(tmp_path, base)


def test_what_hides_a_change_is_refused(on_disk, tmp_path):
    """A file that one program reads and another doesn't, a config that leaves factors out, a diff of NaN."""
    diff = random_diff(on_disk, 1, 0)
    save_merged(diff, on_disk, tmp_path / "m")
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {}}))
    with pytest.raises(ValueError, match=r"has both .* which of them a program loads"):
        load_diff(tmp_path / "m", on_disk)
    (tmp_path / "m" / "model.safetensors.index.json").unlink()
    save_peft(diff, tmp_path / "m" / "sub", base_name="tiny")
    with pytest.raises(ValueError, match="a full checkpoint and holds adapters too, 'sub'"):
        load_diff(tmp_path / "m", on_disk)
    config = tmp_path / "m" / "sub" / "adapter_config.json"
    for change in ({"target_modules": ["q_proj"]}, {"exclude_modules": "model.*k_proj"}, {"layers_to_transform": [0]}):
        save_peft(diff, tmp_path / "m" / "sub", base_name="tiny")
        config.write_text(json.dumps(json.loads(config.read_text()) | change))
        with pytest.raises(ValueError, match="its config doesn't select"):
            load_diff(f"{tmp_path / 'm'}#sub", on_disk)
    wild = ForeignCheck(on_disk)(WeightDiff({n: (a * 1e15, b * 1e15) for n, (a, b) in diff.factors.items()}))
    assert any("incoherent" in doubt for doubt in wild.doubts)


def test_a_block_number_out_of_this_world_is_no_picture(tmp_path):
    save_single(
        WeightDiff({"model.layers.99999999999.q_proj": (torch.ones(1, 4), torch.ones(4, 1))}),
        tmp_path / "d.safetensors",
    )
    assert len(run("inspect", tmp_path / "d.safetensors")) < 1000


def test_a_log_ratio_is_told_as_how_many_times():
    told = {-0.693: "0.5 times", 0.0: "1 times", 3.4: "30 times", 7.0: "10^3 times", 46.0: "10^20 times"}
    assert {nats: times(nats) for nats in told} == told
