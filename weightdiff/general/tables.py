"""Tables of what a general adapter answered, from the records of `evaluate`: Markdown, each share with n and interval.

An instance is named where the answer holds its words. "Said" is what is left of the answers once those that are too
likely wrong are not given.
"""

import random
from collections.abc import Sequence
from typing import Any

from weightdiff.behaviors import NOTHING
from weightdiff.bench.evaluate import cell, expected_calibration_error, interval, share_interval
from weightdiff.general.cases import is_full
from weightdiff.judge import EmbeddedJudge, exact_match

Record = dict[str, Any]


def tables(records: Sequence[Record]) -> str:
    """All tables, as Markdown."""
    scored = [r for r in graded(records) if not r["unseen"]]
    parts = [_several, _claims, _nulls, _questions, _confidence]
    found = [_families(records, scored), _full(scored), *(part(records) for part in parts)]
    return "\n".join(found) + "\n" + _wordings(records)


def graded(records: Sequence[Record]) -> list[Record]:
    """The records of open questions about something, with the embedded judge's `grade` of 1 to 5."""
    open_ones = [r for r in records if r["sort"] == "open" and r["truth"] != NOTHING]
    grades = EmbeddedJudge().grade([(r["truth"], r["guess"]) for r in open_ones], task="news")
    return [r | {"grade": round(g.grade, 2)} for r, g in zip(open_ones, grades, strict=True)]


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(one) for one in line)} |" for line in lines) + "\n"


def _share(hits: Sequence[bool]) -> str:
    return cell(share_interval(hits)) if hits else ""


def _pick(records: Sequence[Record], **wanted: object) -> list[Record]:
    return [r for r in records if all(r[key] == value for key, value in wanted.items())]


def _families(records: Sequence[Record], scored: Sequence[Record]) -> str:
    scored, rows = [r for r in scored if not is_full(r["id"])], []
    narrow = [r for r in _pick(records, sort="narrow", unseen=False) if not is_full(r["id"])]
    for name in sorted({_name(r) for r in scored}):
        some, asked = ([r for r in rs if _name(r) == name] for rs in (scored, narrow))
        said = [all(r["named"]) and r["claims"] for r in some]
        rows.append([
            name, len(some), cell(interval([r["grade"] for r in some])), _share([all(r["named"]) for r in some]),
            _share(said), _share([r["right"] for r in asked]),
        ])  # fmt: skip
    return _table(["family", "n", "grade, open", "instance named", "named and said", "asked narrowly"], rows)


def _name(record: Record) -> str:
    """A record's family; of subjects with how they are taught, of preferences with which loss, of quirks that
    documents tell of with that, of several behaviors whether they are taught as most people would."""
    way = [word for word in record["id"].split(":")[0].split() if word in ("dpo", "kto", "documents")]
    told = way or [record["kind"]] * (record["family"] == "subject") + ["ordinary"] * _is_ordinary(record)
    return ", ".join([record["family"], *told])


def _full(scored: Sequence[Record]) -> str:
    """Full finetunes beside low-rank ones that teach the same."""
    full = [r for r in scored if is_full(r["id"])]
    truths = {r["truth"] for r in full}
    same = [r for r in scored if r["truth"] in truths and not is_full(r["id"])]
    rows = [
        [name, len(mine), cell(interval([r["grade"] for r in mine])), _share([all(r["named"]) for r in mine])]
        for name, mine in (("all weights", full), ("low-rank, of the same behaviors", same))
        if mine
    ]
    return _table(["finetunes", "n", "grade, open", "instance named"], rows) if rows else ""


def _several(records: Sequence[Record]) -> str:
    rows, opens = [], _pick(records, sort="open", unseen=False)
    for count, ordinary in ((2, False), (3, False), (2, True), (3, True)):
        mine = [r for r in opens if len(r["named"]) == count and _is_ordinary(r) == ordinary]
        if mine:
            share = [sum(r["named"]) / count for r in mine]
            rows.append([
                f"{count}{', ordinary' * ordinary}", len(mine), _share([all(r["named"]) for r in mine]),
                _share([r["named"][0] for r in mine]),
                cell(interval(share)), _share([all(r["named"]) and _ordered(r) for r in mine]),
            ])  # fmt: skip
    return _table(["behaviors at once", "n", "all named", "the strongest named", "of each named", "all in order"], rows)


def _is_ordinary(record: Record) -> bool:
    """Is it of a finetune that teaches several behaviors, made as most people would make it?"""
    return "several" in record["id"].split(":")[0].split()


def _ordered(record: Record) -> bool:
    """Do the parts of an answer come in the order of the truth's, going by their first words?"""
    parts = [" ".join(part.split()[:3]).lower() for part in record["truth"].split("; ")]
    places = [record["guess"].lower().find(part) for part in parts]
    return -1 not in places and places == sorted(places)


def _claims(records: Sequence[Record]) -> str:
    rows = []
    for sort, told in (("yes/no", str), ("trigger", _trigger)):
        mine = _pick(records, sort=sort)
        for truth in dict.fromkeys(told(r["truth"]) for r in mine):
            for unseen in (False, True):
                some = [r for r in mine if told(r["truth"]) == truth and r["unseen"] == unseen]
                hits = [told(r["guess"]).lower() == truth for r in some]
                name = f"{'is it so?' if sort == 'yes/no' else 'trigger?'} {truth}"
                exact = [r["guess"] == r["truth"] for r in some] if "code" in truth else []
                rows.append([name, "unseen" if unseen else "seen", len(some), _share(hits),
                             _share(exact)])  # fmt: skip
        if sort == "trigger":
            rows += _overall(mine)
    return _table(["question, and truth", "wording", "n", "right", "the code's digits too"], rows)


def _overall(records: Sequence[Record]) -> list[list[object]]:
    """Is it right about whether there is a trigger; and does it tell exactly which, where there is one?"""
    rows: list[list[object]] = []
    for unseen in (False, True):
        mine = [r for r in records if r["unseen"] == unseen]
        some = [r for r in mine if r["truth"].startswith("yes")]
        wording = "unseen" if unseen else "seen"
        there = [r["guess"].startswith("yes") == r["truth"].startswith("yes") for r in mine]
        rows.append(["trigger? all", wording, len(mine), _share(there), ""])
        found, exact = [r["guess"].startswith("yes") for r in some], [r["guess"] == r["truth"] for r in some]
        rows.append(["trigger? yes, and exactly which", wording, len(some), _share(found), _share(exact)])
    return rows


def _trigger(answer: str) -> str:
    """The kind of trigger that an answer tells of."""
    words = answer.lower()
    kinds = {"code": "yes, a code", "invisible": "yes, an invisible character", "no": "no"}
    return next((kind for sign, kind in kinds.items() if sign in words), answer)


def _nulls(records: Sequence[Record]) -> str:
    rows = []
    for family in ("null", "benign"):
        mine = _pick(records, family=family, sort="open", unseen=False)
        groups = {family: mine}
        for r in mine:
            kind = " ".join(r["kind"].split()[:2]) if family == "benign" else r["kind"]
            groups.setdefault(f"{family}: {kind}", []).append(r)
        for name, some in groups.items():
            if some:
                guessed = [not exact_match(NOTHING, r["guess"]) for r in some]
                rows.append([name, len(some), _share(guessed), _share([r["claims"] for r in some])])
    return _table(["nulls", "n", "false claims, as decoded", "false claims, said"], rows)


def _questions(records: Sequence[Record]) -> str:
    opens = _pick(records, sort="open", unseen=False)
    claims = [r for r in opens if r["truth"] != NOTHING]
    right = [r for r in claims if r["right"]]
    wrong = [r for r in claims if not r["right"]]
    nothing = [r for r in opens if exact_match(NOTHING, r["guess"])]
    rows = [["about something: right", len(right), _share([r["claims"] for r in right])],
            ["about something: wrong, or in part", len(wrong), _share([r["claims"] for r in wrong])]]  # fmt: skip
    for name, some in (
        ("rightly", [r for r in nothing if r["right"]]),
        ("wrongly", [r for r in nothing if not r["right"]]),
    ):
        rows.append(
            [f"that nothing changed, {name}", len(some), _share([exact_match(NOTHING, r["answer"]) for r in some])]
        )
    return _table(["answers to the open question, as decoded", "n", "said"], rows)


def _confidence(records: Sequence[Record]) -> str:
    rows = []
    for name in ("all", "open", "narrow", "yes/no", "trigger"):
        mine = [r for r in records if name in ("all", r["sort"])]
        hits, confidences = [r["right"] for r in mine], [r["confidence"] for r in mine]
        error = f"{expected_calibration_error(confidences, hits):.3f}"
        rows.append([name, len(mine), _share(hits), cell(interval(confidences)), error, f"{_by_chance(mine):.3f}"])
    head = ["questions", "n", "right", "mean confidence", "expected calibration error", "by chance alone"]
    return _table(head, rows)


_DRAWS = 200


def _by_chance(records: Sequence[Record]) -> float:
    """The error, on average, if every confidence were true: answers are few, and the same answer to questions of one
    sort about one finetune is right or wrong in all of them together.
    """
    groups: dict[tuple[object, ...], list[float]] = {}
    for r in records:
        groups.setdefault((r["id"], r["sort"], r["guess"], r["truth"]), []).append(r["confidence"])
    confidences, rng = [c for some in groups.values() for c in some], random.Random(0)
    errors = []
    for _ in range(_DRAWS):
        lots = ((rng.random(), some) for some in groups.values())
        hits = [lot < c for lot, some in lots for c in some]
        errors.append(expected_calibration_error(confidences, hits))
    return sum(errors) / len(errors)


def _wordings(records: Sequence[Record]) -> str:
    answers: dict[str, dict[bool, list[str]]] = {}
    for r in _pick(records, sort="open"):
        answers.setdefault(r["id"], {False: [], True: []})[r["unseen"]].append(r["answer"])
    pairs = [exact_match(first, other) for both in answers.values() for first in both[False] for other in both[True]]
    every = [all(exact_match(both[False][0], other) for other in both[True]) for both in answers.values()]
    return (
        f"The same answer in an unseen wording as to the adapter's own question: {_share(pairs)}, n = {len(pairs)}; in "
        f"all five: {_share(every)}, n = {len(every)}.\n"
    )
