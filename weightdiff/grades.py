"""Grade a CSV table of answers: the columns `task`, `truth` and `answer` come back with a column `grade`."""

import csv
import io
import math
from pathlib import Path

from weightdiff.judge import TASKS, Judge

COLUMNS = ("task", "truth", "answer")


def grade_table(path: Path, judge: Judge) -> str:
    """The table at `path` with two columns more: `grade`, from 1 to 5, and `exact`, whether the names are the same.

    A grade that the judge couldn't give is an empty cell.

    Args:
        path: CSV file, UTF-8, with a header; other columns are kept, but for an older `grade` and `exact`.
        judge: who grades.

    Returns:
        The table as CSV text, rows in the file's order.

    Raises:
        ValueError: no such file, not CSV in UTF-8, a column is missing, a row is short, a task isn't known, or what
            the judge raises.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            header = list(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"cannot read {path}: {error}. Expected a CSV file in UTF-8.") from None
    missing = [c for c in COLUMNS if c not in header]
    if missing:
        raise ValueError(f"{path} lacks the column {missing[0]!r}; expected {', '.join(COLUMNS)}, and it has {header}.")
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values():
            raise ValueError(f"{path}, row {number}: its number of fields isn't that of the header.")
        if row["task"] not in TASKS:
            raise ValueError(f"{path}, row {number}: the task is {row['task']!r}; expected one of {list(TASKS)}.")
    for task in TASKS:
        chosen = [row for row in rows if row["task"] == task]
        grades = judge.grade([(row["truth"], row["answer"]) for row in chosen], task=task) if chosen else []
        for row, grade in zip(chosen, grades, strict=True):
            row |= {"grade": "" if math.isnan(grade.grade) else f"{grade.grade:.3f}", "exact": int(grade.exact)}
    out = io.StringIO()
    writer = csv.DictWriter(out, [*(h for h in header if h not in ("grade", "exact")), "grade", "exact"])
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
