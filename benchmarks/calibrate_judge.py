"""Fit the embedded judge's numbers to published grades, and measure how well it foretells those of unseen labels.

    python benchmarks/calibrate_judge.py published_grades.csv

Knows the judge's features and the form of its regression, not what the texts are about. The CSV has the columns
`task`, `truth`, `answer`, `grade`; it is not part of the package, only the fitted numbers are.
"""

import argparse
import csv
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold

from weightdiff import judge

OUT = Path(__file__).resolve().parent.parent / "weightdiff" / "data" / "judge.json"

# Chosen among some twenty sets with the same grouped cross-validation that is reported, so the figures are a
# little kind to them. The sets spanned 0.875 to 0.89 in Pearson on topics, 0.94 to 0.947 on news.
USED = {
    "topic": [f for f in judge.FEATURES if not f.startswith("clause")],
    "news": ["cosine", "bare_cosine", "clause_mean", "clause_max", "soft_precision"],
}
ALPHA = 100.0
FOLDS, INNER_FOLDS = 10, 5
RESAMPLES = 2000


def ridge(x: np.ndarray, y: np.ndarray, names: list[str]) -> dict[str, Any]:
    """One task's regression, its map to grades the identity; features are picked from `x` by `names`."""
    columns = [judge.FEATURES.index(n) for n in names]
    fit: dict[str, Any] = {
        "features": names,
        "mean": x[:, columns].mean(0).tolist(),
        "std": (x[:, columns].std(0) + 1e-9).tolist(),
    }
    model = Ridge(ALPHA).fit(judge.expand(x[:, columns], fit), y)
    return fit | {
        "weights": model.coef_.tolist(),
        "intercept": float(model.intercept_),
        "map_from": [-9.0, 9.0],
        "map_to": [-9.0, 9.0],
    }


def raw(fit: dict[str, Any], x: np.ndarray) -> np.ndarray:
    """The regression's value before its map to grades."""
    columns = [judge.FEATURES.index(n) for n in fit["features"]]
    return judge.expand(x[:, columns], fit) @ np.asarray(fit["weights"]) + fit["intercept"]


def fit_task(x: np.ndarray, y: np.ndarray, truths: np.ndarray, names: list[str], seed: int) -> dict[str, Any]:
    """The regression, then a monotone map from its values to grades, learned on folds that it didn't see.

    Args:
        x: features `[row, feature]`.
        y: grades `[row]`.
        truths: the true label of each row; a label is in one fold only.
        names: the features to use.
        seed: shuffles the folds.

    Returns:
        One task's entry of `judge.json`, without figures.
    """
    unseen = np.zeros(len(y))
    for train, test in GroupKFold(INNER_FOLDS, shuffle=True, random_state=seed).split(x, y, truths):
        unseen[test] = raw(ridge(x[train], y[train], names), x[test])
    # three digits, so that no step of the map is so steep that the last bits of a sentence vector decide a grade
    iso = IsotonicRegression(out_of_bounds="clip").fit(unseen.round(3), y)
    fit = ridge(x, y, names)
    return fit | {"map_from": iso.X_thresholds_.tolist(), "map_to": iso.y_thresholds_.tolist()}


def rounded(value: Any) -> Any:
    """The same numbers with five significant digits, so that the file stays small."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, list) else value


def unseen_grades(
    x: np.ndarray, y: np.ndarray, truths: np.ndarray, exact: np.ndarray, names: list[str], seed: int
) -> np.ndarray:
    """What the judge gives each row when fitted without any row of the same truth; 5 where `exact`."""
    out = np.full(len(y), 5.0)
    for train, test in GroupKFold(FOLDS, shuffle=True, random_state=seed).split(x, y, truths):
        train = train[~exact[train]]
        test = test[~exact[test]]
        out[test] = judge.predict(rounded(fit_task(x[train], y[train], truths[train], names, seed)), x[test])
    return out


def agreement(given: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Pearson correlation, mean absolute error and bias of the grades `given` against `y`."""
    return float(np.corrcoef(given, y)[0, 1]), float(abs(given - y).mean()), float((given - y).mean())


def figures(given: np.ndarray, y: np.ndarray, truths: np.ndarray, seed: int) -> dict[str, Any]:
    """The agreement with 95 % bootstrap intervals over truths: the rows of one truth rise and fall together."""
    rng = np.random.default_rng(seed)
    rows = [np.flatnonzero(truths == t) for t in np.unique(truths)]
    draws = []
    for _ in range(RESAMPLES):
        picked = np.concatenate([rows[i] for i in rng.integers(len(rows), size=len(rows))])
        draws.append(agreement(given[picked], y[picked]))
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    point = agreement(given, y)
    named = {n: [point[i], float(low[i]), float(high[i])] for i, n in enumerate(("pearson", "mae", "bias"))}
    return {k: [round(v, 4) for v in vs] for k, vs in named.items()} | {"n": len(y), "n_truths": len(rows)}


def read_rows(path: Path) -> list[dict[str, str]]:
    """The CSV's rows, with the columns that are needed.

    Raises:
        ValueError: a column is missing, or a task has too few truths to cross-validate.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    missing = {"task", "truth", "answer", "grade"} - set(rows[0] if rows else ())
    if missing:
        raise ValueError(f"{path} lacks {sorted(missing)}: expected a CSV with task, truth, answer, grade")
    for task in judge.TASKS:
        n = len({judge.normalize(r["truth"]) for r in rows if r["task"] == task})
        if n < 2 * FOLDS:
            raise ValueError(f"{path} has {n} truths of task {task!r}; give at least {2 * FOLDS}")
    return rows


def main() -> None:
    """Fit both tasks, print the agreement on unseen labels, write the numbers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("csv", type=Path, help="published grades: task, truth, answer, grade")
    parser.add_argument("--out", type=Path, default=OUT, help="where to write the fitted numbers")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        rows = read_rows(args.csv)
    except (OSError, ValueError) as e:
        parser.exit(1, f"calibrate_judge: {e}\n")

    tasks = {}
    for task in judge.TASKS:
        pairs = [(r["truth"], r["answer"]) for r in rows if r["task"] == task]
        y = np.array([float(r["grade"]) for r in rows if r["task"] == task])
        truths = np.array([judge.normalize(t) for t, _ in pairs])
        exact = np.array([judge.exact_match(t, a) for t, a in pairs])
        x = judge.features(pairs)
        found = figures(unseen_grades(x, y, truths, exact, USED[task], args.seed), y, truths, args.seed)
        for name in ("pearson", "mae", "bias"):
            point, low, high = found[name]
            print(f"{task:6} {name:8} {point:7.3f}  [{low:6.3f}, {high:6.3f}]")
        print(
            f"{task:6} n = {len(y)} pairs of {found['n_truths']} truths, {int(exact.sum())} of them exact", flush=True
        )
        fit = fit_task(x[~exact], y[~exact], truths[~exact], USED[task], args.seed)
        tasks[task] = rounded(fit) | {"figures": found}

    made = {"encoder": f"{judge.ENCODER} {version(judge.ENCODER)}", "seed": args.seed, "alpha": ALPHA}
    args.out.write_text(json.dumps(made | {"tasks": tasks}, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"wrote {args.out}, {args.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
