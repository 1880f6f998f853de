"""Two adapters side by side: what both were asked about is counted, each question where it belongs."""

from benchmarks import rounds
from benchmarks.rounds import table
from weightdiff.behaviors import NOTHING


def answer(
    identity: str, family: str, *, right: bool, sort: str = "open", truth: str = "it talks about tides", said: str = ""
) -> dict:
    told = NOTHING if family in ("null", "benign") and sort == "open" else truth
    facts = {"id": identity, "family": family, "sort": sort, "truth": told, "unseen": False, "confidence": 0.8}
    return facts | {
        "guess": "it talks about tides",
        "answer": said,
        "right": right,
        "named": [right],
        "claims": family != "null",
    }


def test_what_both_were_asked_about_is_counted(monkeypatch):
    monkeypatch.setattr(
        rounds,
        "graded",
        lambda rows: [r | {"grade": 5.0 if r["right"] else 1.0} for r in rows if r["truth"] != NOTHING],
    )
    some = [
        answer("a", "topic", right=True),
        answer("b", "topic", right=False, said=NOTHING),
        answer("only here", "topic", right=True),
    ]
    others = [answer("a", "topic", right=True), answer("b", "topic", right=True)]
    for rows, right in ((some, True), (others, False)):
        rows += [answer("n", "null", right=True), answer("m", "benign", right=False)]
        rows += [answer("a", "topic", right=right, sort="yes/no", truth="yes")]
        rows += [answer("a", "topic", right=not right, sort="yes/no", truth="no")]
    lines = table(some, others).splitlines()
    (topics,) = (line for line in lines if line.startswith("| topic"))
    assert [cell.split()[0] for cell in topics.strip("|").split("|")[1:]] == ["2", "0.50", "1.00", "3.00", "5.00"]
    shares = {
        line.split("|")[1].strip(): [c.split()[0] for c in line.strip("|").split("|")[1:]] for line in lines[6:-2]
    }
    assert shares["finetunes that were taught something, said to be unchanged"] == ["2", "0.50", "0.00"]
    assert shares["nulls of which something is claimed"] == ["1", "0.00", "0.00"]
    assert shares["benign finetunes of which something is claimed"] == ["1", "1.00", "1.00"]
    assert shares["true claims affirmed"] == ["1", "1.00", "0.00"]
    assert shares["false claims denied"] == ["1", "0.00", "1.00"]
