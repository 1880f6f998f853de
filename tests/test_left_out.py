"""Families left out: what is read by which adapter, and the table that compares them."""

import pytest

from benchmarks import left_out
from benchmarks.left_out import ASKED, FAMILIES, GROUPS, table
from weightdiff.general.settings import Shares


def record(family: str, without: str, guess: str, *, right: bool, n: int = 0) -> dict:
    truth = f"it talks about {family} matters"
    facts = {"id": f"test 0: {truth} {n}", "family": family, "kind": "chats", "sort": "open", "unseen": False}
    asked = {"confidence": 0.75, "right": right, "named": [right], "claims": True} if without != ASKED else {}
    return {"without": without, "truth": truth, "guess": guess} | facts | asked


def test_every_family_is_left_out_once():
    assert sorted(FAMILIES) == sorted(Shares.model_fields)
    assert len(FAMILIES) == len(set(FAMILIES)) == sum(map(len, GROUPS))


def test_the_table_tells_families_that_were_left_out_from_those_seen(monkeypatch):
    grades = {"all of it": 5.0, "half of it": 3.0, "nothing": 1.0}
    monkeypatch.setattr(left_out, "graded", lambda rows: [r | {"grade": grades[r["guess"]]} for r in rows])
    records = []
    for group in map(" ".join, GROUPS):
        out = "quirk" in group
        records += [record("quirk", group, "half of it" if out else "all of it", right=not out, n=n) for n in range(4)]
    records += [record("quirk", ASKED, "nothing", right=False, n=n) for n in range(4)]
    row, every, *rest = (
        line for line in table(records).splitlines() if line.startswith(("| quirk", "| all", "| open"))
    )
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1] == "4" and [c.split()[0] for c in cells[2:5]] == ["3.00", "5.00", "1.00"]
    assert cells[5].startswith("0.50 ["), "half of what seeing the family gives above the base question"
    assert [c.split()[0] for c in cells[6:]] == ["0.00", "1.00", "1.00", "0.00"]
    assert every.split("|")[2:] == row.split("|")[2:], "no other family has been asked about"
    assert rest == ["| open | 4 | 0.00 [0.00, 0.49] | 1.00 [0.68, 1.00] | 0.75 | 0.25 |"]


def test_a_part_that_is_none_is_refused(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["left_out", "recipe.toml", "out.jsonl", "--part", "4"])
    with pytest.raises(SystemExit):
        left_out.main()
    assert "invalid choice" in capsys.readouterr().err
