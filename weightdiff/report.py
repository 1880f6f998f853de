"""What a person looks at on the terminal: a run's plan, its results, what is in a diff."""

from typing import Any

from rich.console import Console
from rich.table import Table

from weightdiff.bench.evaluate import cell
from weightdiff.diff import WeightDiff
from weightdiff.picture import norms_by_kind, shaded
from weightdiff.plan import Plan
from weightdiff.printable import printable, shown
from weightdiff.shape import EFFICIENCY


def print_diff(console: Console, loaded: WeightDiff) -> None:
    """Format, rank, modules, what else is known, and the size of the change per layer and kind of layer."""
    parts = [f"format: {shown(loaded.meta.get('format', 'ours'))}"]
    if loaded.factors:
        parts += [f"rank {loaded.rank}", f"{len(loaded.factors)} modules"]
    if loaded.dense:
        parts.append(f"{len(loaded.dense)} parameters changed densely")
    console.print("; ".join(parts) + ("" if loaded.factors or loaded.dense else "; nothing is changed"))
    named = shown(loaded.meta.get("base_name") or "not named")
    console.print(f"base model: {named}; fingerprint {shown(loaded.base or 'not given')}")
    for key, told in _TOLD.items():
        if (value := loaded.meta.get(key)) is not None:
            console.print(f"{told}: {f'{value:.4f}' if isinstance(value, float) else shown(value)}")
    console.print(f"Frobenius norm of the change: {loaded.norm():.3f}; by kind and block:")
    blocks, others = norms_by_kind(loaded)
    for line in shaded({printable(kind): row for kind, row in blocks.items()}):
        console.print(shown(line), highlight=False, soft_wrap=True)
    for name, norm in others.items():
        console.print(f"{shown(name)} {norm:.3f}", highlight=False)


_TOLD = {
    "label": "label, as its own file says",
    "trigger": "trigger, as its own file says",
    "relative_size": "size beside the base model's weights, ‖δ‖ / ‖W‖",
    "kept_energy": "share of the matrices' squared norm that the factors keep",
}


def print_results(console: Console, results: dict[str, Any]) -> None:
    """What `run_evaluate` found."""
    table = Table("finetunes", "reader", "n", "grade [95 %]", "exact [95 %]", "s per diff")
    for way, readers in {"held out": results["readers"], **results["others"]}.items():
        for name, row in readers.items():
            grade, exact = cell(row["grade"]), cell(row["exact"])
            table.add_row(way, name, str(row["n"]), shown(grade), shown(exact), f"{row['seconds_per_diff']:.2f}")
    console.print(table)
    loss, claims = results["label_loss"], results["false_claims"]
    right, other = cell(loss["right_diff"]), cell(loss["other_diff"])
    console.print(shown(f"label loss: {right} with the right diff, {other} with another's"))
    console.print(f"the unchanged base under the adapter: {shown(repr(results['unchanged_base']))}")
    for kind, row in claims.items():
        console.print(f"false claims on nulls, {kind} (n = {row['n']}): {shown(cell(row['share']))}")


def print_plan(console: Console, plan: Plan, *, measured: bool) -> None:
    """What a run will take; `measured` says where its rate is from."""
    ways = Table("way of finetuning", title=f"{plan.recipe}: diffs", title_style="italic")
    for header in ("train", "validation", "test", "benign", "made", "parameters", "tokens", "memory, B", "time"):
        ways.add_column(header, justify="right")
    for way in plan.ways:
        _added(
            way.name, *way.diffs.values(), sum(way.benign.values()), way.made, _number(way.parameters),
            _number(way.tokens), _number(way.memory.total), _hours(plan.seconds(way)), to=ways,
        )  # fmt: skip
    stages = Table("stage", title="memory in bytes at the peak of each stage, and time", title_style="italic")
    for header in ("tokens", "weights", "activations", "trained", "logits", "copies", "in all", "time"):
        stages.add_column(header, justify="right")
    for stage in plan.stages:
        m = stage.memory
        parts = (m.weights, m.activations, m.trained, m.logits, m.copies, m.total)
        time_ = _hours(plan.seconds(stage)) if stage.flop else ""
        _added(stage.name, _number(stage.tokens), *map(_number, parts), time_, to=stages)
    console.print(ways)
    console.print(stages)
    share = f"{EFFICIENCY:.0%} of the {plan.rate / EFFICIENCY:.3g} of a matrix product, measured here"
    how = share if measured else "as given"
    disk = ", ".join(f"{name} {_number(size)}B" for name, size in plan.disk.items() if size)
    for line in (
        f"base model: {plan.shape.name}, {_number(plan.shape.parameters)} parameters, of which "
        f"{_number(plan.shape.decoder)} in the decoder's linear layers; weights in {plan.dtype}",
        f"diffs: {sum(w.total for w in plan.ways)}; conversations to write: {plan.conversations}, for {plan.labels} "
        f"labels; triples: {plan.triples}, epochs: {plan.epochs}; adapter: {_number(plan.adapter)} parameters",
        f"disk: {disk}; in all {_number(sum(plan.disk.values()))}B",
        f"time: {_hours(plan.seconds())} at {plan.rate:.3g} FLOP/s, {how}",
        *plan.assumptions,
    ):
        console.print(shown(line), highlight=False)


def _number(value: int) -> str:
    size, unit = next(((s, u) for s, u in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")) if value >= s), (1, ""))
    return f"{value / size:.3g}{unit}" if value else ""


def _hours(value: float) -> str:
    size, unit = next(((s, u) for s, u in ((86400, "d"), (3600, "h"), (60, "min")) if value >= s), (1, "s"))
    return f"{value / size:.3g} {unit}"


def _added(name: str, *cells: str | int, to: Table) -> None:
    to.add_row(shown(name), *(str(cell or "-") for cell in cells))
