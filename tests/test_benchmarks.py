"""The benchmark command runs, its ways agree, and it says so where they don't."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import COMPARISONS, _kept, table_of
from benchmarks.measure import Check, Line, Result, Size, interleave, relative_gap, speedup


def test_the_quick_form_runs_and_everything_agrees(tmp_path):
    out = tmp_path / "quick.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--threads", "1", "--out", str(out)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads(out.read_text())
    assert record["quick"] and record["machine"]["versions"]["torch"] and record["threads"] == 1
    assert list(record["results"]) == list(COMPARISONS)
    for name, result in record["results"].items():
        assert not result["void"], (name, result["checks"])
        assert result["lines"] and all(line["value"] > 0 for line in result["lines"]), name
        assert name in done.stdout


def test_ways_take_turns_and_the_first_round_only_warms_up():
    order = []
    ways = {"a": lambda: order.append("a"), "b": lambda: order.append("b") or 2.0}
    seconds, returned = interleave(ways, Size(quick=False, rounds=2))
    assert order == ["b", "a", "a", "b", "b", "a"]
    assert seconds["b"] == [2.0, 2.0] and returned["b"] == [2.0, 2.0] and len(seconds["a"]) == 2
    assert speedup([1.0, 2.0, 1.0], [3.0, 2.0, 2.0]) == 2.0
    assert relative_gap([1.0, 0.1], [1.1, 0.0], least=1.0) == 0.1


def test_a_disagreement_voids_the_comparison():
    line = Line("ours", 3.0, "tokens/s", 3.0, 2.0)
    good = Result("x", [line], [Check("gap", 0.01, 0.02)])
    bad = Result("y", [line], [Check("gap", 0.03, 0.02)])
    assert not good.void and bad.void and line.met
    assert Line("memory", 3.0, "GB", 1.2, 1.1, at_most=True).met is False
    cells = [list(column.cells) for column in table_of([good, bad], "t").columns]
    assert cells[-1] == ["reached", "void", "✗"]


def test_comparisons_run_anew_join_those_that_were_measured_likewise(tmp_path):
    out, record = tmp_path / "cpu.json", {"date": "today", "threads": 2, "machine": {"memory_gb": 23.456789}}
    assert _kept(out, record) == {}
    out.write_text(json.dumps({"date": "before", "threads": 2, "machine": {"memory_gb": 23.457}, "results": {"a": 1}}))
    assert _kept(out, record) == {"a": 1}
    with pytest.raises(SystemExit, match=r"measured otherwise \(threads\)"):
        _kept(out, record | {"threads": 1})
