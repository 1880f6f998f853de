"""How large a change is by layer and kind of layer, as a picture: shades in the terminal, or a PNG."""

from collections import defaultdict
from pathlib import Path

from weightdiff.diff import WeightDiff

_SHADES = "·░▒▓█"


def norms_by_kind(diff: WeightDiff) -> tuple[dict[str, dict[int, float]], dict[str, float]]:
    """Frobenius norms of the change: by kind of layer and number of block, and of what lies in no block.

    Returns:
        `q_proj` to block number to norm, in the model's order; and module name to norm (embeddings, head).
    """
    blocks: dict[str, dict[int, float]] = defaultdict(dict)
    others: dict[str, float] = {}
    for name, norm in diff.norms().items():
        parts = name.split(".")
        at = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
        if at is None or len(parts[at]) > 4:  # no model has ten thousand blocks, and a picture hasn't room for them
            others[name] = norm
        else:
            kind = parts[-1] if at + 1 < len(parts) else name
            blocks[kind][int(parts[at])] = norm
    return dict(blocks), others


def shaded(blocks: dict[str, dict[int, float]]) -> list[str]:
    """A line for each kind of layer, a letter for each block, darker the larger its norm; with the kind's own norm."""
    numbers = range(max((n for row in blocks.values() for n in row), default=-1) + 1)
    most = max((norm for row in blocks.values() for norm in row.values()), default=0.0)
    width = max(map(len, blocks), default=0)
    lines = []
    for kind, row in blocks.items():
        cells = (row.get(n) for n in numbers)
        picture = "".join(" " if norm is None else _SHADES[_step(norm, most)] for norm in cells)
        lines.append(f"{kind:>{width}} {picture} {sum(n * n for n in row.values()) ** 0.5:.3f}")
    if lines:
        ticks = "".join(f"{n:<5}" for n in numbers[::5])[: len(numbers) + 2]
        lines.append(f"{'block':>{width}} {ticks}")
    return lines


def _step(norm: float, most: float) -> int:
    """0 where nothing changes, else 1 to 4 by the norm's part of the largest."""
    return 0 if norm == 0 or most == 0 else min(len(_SHADES) - 1, 1 + int(norm / most * (len(_SHADES) - 1)))


def draw_norms(diff: WeightDiff, path: Path, title: str) -> None:
    """Write the picture as a PNG.

    Raises:
        ValueError: the diff is empty, or the file can't be written.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    blocks, others = norms_by_kind(diff)
    if not blocks:
        raise ValueError(f"{title}: nothing to draw; the diff changes no layer of a numbered block.")
    numbers = range(max(n for row in blocks.values() for n in row) + 1)
    grid = [[row.get(n, float("nan")) for n in numbers] for row in blocks.values()]
    figure, axes = plt.subplots(figsize=(2.5 + 0.22 * len(numbers), 1.6 + 0.3 * len(blocks)))
    shown = axes.imshow(grid, cmap="magma_r", vmin=0, aspect="auto")
    axes.set(xlabel="block", yticks=range(len(blocks)))
    axes.set_yticklabels(list(blocks), parse_math=False)
    axes.set_title(f"Frobenius norm of the change, {diff.norm():.3g} in all", fontsize=9)
    figure.colorbar(shown, ax=axes)
    below = [title, *(f"{name}: {norm:.3g}" for name, norm in others.items())]
    figure.text(0.01, 0.0, "\n".join(below)[:400], fontsize=7, va="top", parse_math=False)
    try:
        figure.savefig(path, format="png", dpi=150, bbox_inches="tight")
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}.") from None
    finally:
        plt.close(figure)
