"""A run's figures as Markdown tables, and its curve as a picture: python -m benchmarks.report results/NAME [CURVE.svg].

Everything in docs/results.md that is a number comes from here, and from the files that it reads.
"""

import json
import sys
from pathlib import Path
from typing import Any

from weightdiff.bench.evaluate import cell
from weightdiff.jsonl import read_jsonl


def readers_table(results: dict[str, Any]) -> list[str]:
    lines = [
        "| finetunes | reader | n | grade, 1 to 5 [95 %] | exact names [95 %] |",
        "| --- | --- | --- | --- | --- |",
    ]
    first = results["run"]["recipe"]["finetune"][0]["name"]
    for way, readers in {first: results["readers"], **results["others"]}.items():
        for name, row in readers.items():
            lines.append(f"| {way} | {name} | {row['n']} | {cell(row['grade'])} | {cell(row['exact'])} |")
    return lines


def nulls_table(results: dict[str, Any]) -> list[str]:
    lines = ["| null | n | share with a false claim [95 %] |", "| --- | --- | --- |"]
    return lines + [f"| {k} | {row['n']} | {cell(row['share'])} |" for k, row in results["false_claims"].items()]


def curve_table(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["| training diffs | grade [95 %] | exact names [95 %] | validation loss |", "| --- | --- | --- | --- |"]
    return lines + [
        f"| {r['train_diffs']} | {cell(r['grade'])} | {cell(r['exact'])} | {r['validation_loss']:.2f} |" for r in rows
    ]


def draw(rows: list[dict[str, Any]], base: float, path: Path) -> None:
    """Grade with its interval against training diffs, and the base question's grade as a line."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.4))
    x, y = [r["train_diffs"] for r in rows], [r["grade"][0] for r in rows]
    error = [[r["grade"][0] - r["grade"][1] for r in rows], [r["grade"][2] - r["grade"][0] for r in rows]]
    axes.errorbar(x, y, yerr=error, marker="o", capsize=3, label="DIT")
    axes.axhline(base, linestyle="--", color="gray", label="base question")
    axes.set(xscale="log", xlabel="training diffs", ylabel="mean grade", ylim=(1, 5), xticks=x)
    axes.set_xticklabels([str(n) for n in x])
    axes.minorticks_off()
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    folder = Path(sys.argv[1])
    results = json.loads((folder / "results.json").read_text())
    loss = results["label_loss"]
    lines = [*readers_table(results), "", *nulls_table(results), ""]
    lines += [f"Label loss: {cell(loss['right_diff'])} with the right diff, {cell(loss['other_diff'])} with another's."]
    lines += [f"The unchanged base model: {results['unchanged_base']!r}.", ""]
    if (folder / "curve.jsonl").exists():
        rows = sorted(read_jsonl(folder / "curve.jsonl"), key=lambda r: r["train_diffs"])
        lines += curve_table(rows)
        if len(sys.argv) > 2:
            draw(rows, results["readers"]["base question"]["grade"][0], Path(sys.argv[2]))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
