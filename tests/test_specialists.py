"""Specialists: the table that holds one adapter for all families against them."""

import pytest

from benchmarks import specialists
from benchmarks.left_out import ASKED, FAMILIES, GROUPS
from benchmarks.specialists import table


def record(family: str, without: str | None, guess: str, *, named: bool, n: int, full: bool = False) -> dict:
    truth = f"it talks about {family} matters"
    name = "test full 0" if full else "test 0"
    facts = {"id": f"{name}: {truth} {n}", "family": family, "sort": "open", "unseen": False, "named": [named]}
    return {"truth": truth, "guess": guess} | facts | ({} if without is None else {"without": without})


def test_the_general_adapter_is_held_against_the_specialist_of_each_family(monkeypatch):
    grades = {"all of it": 5.0, "most of it": 4.0, "nothing": 1.0}
    monkeypatch.setattr(specialists, "graded", lambda rows: [r | {"grade": grades[r["guess"]]} for r in rows])
    others = " ".join(family for family in FAMILIES if family not in GROUPS[0])
    records = [record("quirk", others, "all of it", named=True, n=n) for n in range(4)]
    records += [record("quirk", others, "nothing", named=False, n=9, full=True)]
    records += [record(family, ASKED, "nothing", named=False, n=n) for family in ("quirk", "topic") for n in range(4)]
    answers = [record("quirk", None, "most of it", named=n > 0, n=n) for n in range(4)]
    answers += [record("topic", None, "nothing", named=False, n=n) for n in range(4)]
    row, every = table(records, answers).splitlines()[2:]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:2] == ["quirk", "4"], "full finetunes stand in a table of their own, and topics have no specialist"
    assert [cell.split()[0] for cell in cells[2:]] == ["4.00", "5.00", "1.00", "0.75", "0.75", "1.00"]
    assert every.split("|")[2:] == row.split("|")[2:]


def test_a_part_that_is_none_is_refused(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["specialists", "recipe.toml", "answers.jsonl", "out.jsonl", "--part", "4"])
    with pytest.raises(SystemExit):
        specialists.main()
    assert "invalid choice" in capsys.readouterr().err
