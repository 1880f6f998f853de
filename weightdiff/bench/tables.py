"""An experiment's rows as a Markdown table and a figure, what was published for other base models beside them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from weightdiff.bench.evaluate import cell
from weightdiff.bench.settings import Experiment

_COLUMNS = {
    "grade": "grade, 1 to 5 [95 %]",
    "exact": "exact [95 %]",
    "share": "share [95 %]",
    "label_loss": "label loss [95 %]",
    "validation_loss": "validation loss",
    "ungraded": "ungraded",
}


def markdown(plan: Experiment, rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a table; a column that no row fills is left out.

    Args:
        plan: the experiment, with what was published.
        rows: as `Rows` gives them.
    """
    used = [c for c in _COLUMNS if any(row.get(c) for row in rows)]
    beside = any(_published(plan, row) for row in rows)
    header = ["condition", "reader", "n", *(_COLUMNS[c] for c in used), *(["published"] if beside else [])]
    lines = [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    for row in rows:
        values = [row.get(c) for c in used]
        cells = [cell(v) if isinstance(v, list) else "" if v is None else str(v) for v in values]
        cells += ["; ".join(map(str, _published(plan, row)))] * beside
        lines.append(f"| {' | '.join([row['condition'], row['reader'], str(row['n']), *cells])} |")
    return "\n".join(lines) + "\n"


def _published(plan: Experiment, row: dict[str, Any]) -> list[Any]:
    reader = row["reader"].split(" (guess by ")[0]  # in the paper a large model guessed, and none counted
    return [p for p in plan.published if (p.condition, p.reader) == (row["condition"], reader)]


def draw(plan: Experiment, rows: Sequence[dict[str, Any]], path: Path) -> None:
    """The rows as a picture: points with their 95 % intervals, one color a reader, published means as crosses.

    Raises:
        ValueError: the file can't be written.
    """
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    what = "grade" if any(row.get("grade") for row in rows) else "share"
    shown = [row for row in rows if row.get(what)]
    curve = all("x" in row for row in shown)
    readers = list(dict.fromkeys(row["reader"] for row in shown))
    conditions = list(dict.fromkeys(row["condition"] for row in shown))
    plt.rcParams["svg.hashsalt"] = "weightdiff"
    figure, axes = plt.subplots(figsize=(7, 3.6) if curve else (7.5, 1.2 + 0.16 * (len(shown) + 2 * len(conditions))))
    for number, reader in enumerate(readers):
        mine = [row for row in shown if row["reader"] == reader]
        shift = (number - (len(readers) - 1) / 2) * 0.8 / len(readers)
        place = [row["x"] if curve else conditions.index(row["condition"]) + shift for row in mine]
        mean = [row[what][0] for row in mine]
        error = [[row[what][0] - row[what][1] for row in mine], [row[what][2] - row[what][0] for row in mine]]
        color = f"C{number % 10}"
        if curve:
            axes.errorbar(place, mean, yerr=error, marker="o", capsize=3, color=color, label=reader)
        else:
            axes.errorbar(mean, place, xerr=error, fmt="o", markersize=4, capsize=2, color=color, label=reader)
        others = [(at, p.grade) for at, row in zip(place, mine, strict=True) for p in _published(plan, row) if p.grade]
        if others and not curve:
            axes.plot([g for _, g in others], [at for at, _ in others], "x", color=color, alpha=0.5, markersize=5)
    limits = (0.9, 5.1) if what == "grade" else (-0.03, 1.03)
    label = "mean grade, 1 to 5" if what == "grade" else "share"
    if curve:
        published = [p for p in plan.published if p.condition.isdigit() and p.grade]
        for base in dict.fromkeys(p.base for p in published):
            points = sorted((int(p.condition), p.grade) for p in published if p.base == base)
            axes.plot(*zip(*points, strict=True), "x--", color="gray", label=f"published, {base}")
        axes.set(xscale="log", xlabel="training diffs", ylabel=label, ylim=limits)
    else:
        axes.set(
            xlabel=label + (" (x: published)" if plan.published else ""), xlim=limits, yticks=range(len(conditions))
        )
        axes.set_yticklabels(conditions, fontsize=7)
        axes.invert_yaxis()
    if len(readers) > 1 or curve:
        axes.legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    try:
        figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}.") from None
    plt.close(figure)
