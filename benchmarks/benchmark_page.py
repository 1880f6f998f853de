"""Put the experiments' tables into docs/benchmark.md: python -m benchmarks.benchmark_page [--check].

Each table stands between two comments that name it, and is replaced by the one in results/benchmark, so that the page
never says what no run gave. `--check` writes nothing, and fails where the page is not up to date.
"""

import json
import re
import sys
from pathlib import Path

from weightdiff.bench.evaluate import cell

ROOT = Path(__file__).parent.parent
PAGE, RESULTS = ROOT / "docs" / "benchmark.md", ROOT / "results" / "benchmark"


def judges_table() -> str:
    """How far the judges agree, from `judge_noise`'s figures."""
    found = json.loads((RESULTS / "judge-noise.json").read_text("utf-8"))
    lines = ["| task: judges | n | Pearson [95 %] | mean difference [95 %] | same grade [95 %] |", "|" + " --- |" * 5]
    for name, row in found.items():
        if isinstance(row, dict):
            figures = " | ".join(cell(row[k]) for k in ("pearson", "mae", "equal"))
            lines.append(f"| {name} | {row['n']} | {figures} |")
    return "\n".join(lines) + "\n"


def filled(page: str) -> str:
    """The page with every table as the results have it."""

    def table(found: re.Match[str]) -> str:
        name = found[1]
        text = judges_table() if name == "judges" else (RESULTS / name / "table.md").read_text("utf-8")
        return f"<!-- {name} -->\n{text}<!-- end -->"

    return re.sub(r"<!-- ([\w-]+) -->\n.*?<!-- end -->", table, page, flags=re.DOTALL)


def main() -> None:
    page = PAGE.read_text("utf-8")
    new = filled(page)
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(new, "utf-8")
    elif new != page:
        sys.exit("docs/benchmark.md is not what results/benchmark has; run: python -m benchmarks.benchmark_page")


if __name__ == "__main__":
    main()
