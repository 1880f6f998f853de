"""Finetuning: the bank against PEFT one LoRA at a time, answers only and with rows to keep to the base model.

And how near the bank comes to the limit of arithmetic: the time that this machine takes for nothing but the matrix
products of a step, with the same weights in the same order and at the same number of tokens.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from benchmarks.measure import Check, Line, Result, Size, interleave, rate, relative_gap, speedup
from benchmarks.peers import Step, peft_model, train_peft
from weightdiff.base import Base
from weightdiff.batch import collate
from weightdiff.behaviors import Behavior, Conversation, read_data
from weightdiff.behaviors.core import Mode
from weightdiff.compiled import PAYS, compiled_blocks
from weightdiff.finetune import FinetuneConfig, Job, Teacher, init_factors, plan_steps, train_together
from weightdiff.losses import cross_entropy, divergence

LOSS_GAP = 0.02
"""How far the losses of two ways may lie apart, relatively, in their last step: both round to bf16 in other places."""
PAPER_STEPS = 8
"""Steps that a diff is taken to have where diffs per hour are told, of as many rows as are measured."""


def conversations(count: int, mode: Mode = "learn", first: int = 0, *, short: bool = False) -> list[Conversation]:
    """Rows of 50 to 75 tokens, half of them the reply, made of plain questions: speed doesn't ask what they say.

    Short ones, of one question each way, have about 25.
    """
    questions = read_data("questions.txt")

    def some(at: int, n: int) -> str:
        return " ".join(questions[(at + i) % len(questions)] for i in range(n))

    return [
        Conversation(some(7 * i, 1 if short else 2 + i % 2), some(11 * i + 3, 1 if short else 3 + (i // 2) % 2), mode)
        for i in range(first, first + count)
    ]


@dataclass
class Work:
    """A finetuning task: some diffs, each with rows of its own to learn, and rows that they share to keep to the base.

    Attributes:
        base: the base model.
        jobs: the diffs.
        config: how they are made.
    """

    base: Base
    jobs: list[Job]
    config: FinetuneConfig

    def __post_init__(self) -> None:
        teacher = Teacher(self.base)
        self.plan = [plan_steps(job, self.config) for job in self.jobs]
        self.plans = [[_rows(teacher, step) for step in plan] for plan in self.plan]
        rows = [r for plan in self.plans for step in plan for group in step for r in group]
        self.rows, self.tokens = rows, sum(len(r) for r in rows)
        self.lengths = {"mean": self.tokens / len(rows), "least": min(map(len, rows)), "most": max(map(len, rows))}
        self.start = init_factors(self.base, [job.identity for job in self.jobs], self.config)

    def ours(self, teacher: Teacher | None = None) -> list[float]:
        """Each diff's loss in its last step, all trained together, compiled as long work is."""
        with compiled_blocks(self.base, PAYS):
            diffs, _ = train_together(self.base, self.jobs, self.config, teacher or Teacher(self.base))
        return [diff.meta["loss"] for diff in diffs]

    def peft(self, model: object, rows: int) -> list[float]:
        """The same one after the other, `rows` rows at a time."""
        return train_peft(
            model, self.start, self.plans, rows=rows, lr=self.config.lr, keep_weight=self.config.keep_weight
        )


def work_of(base: Base, diffs: int, *, steps: int, learn: int = 4, keep: int = 0, short: bool = False) -> Work:
    """A task of `diffs` diffs, each with the rows of one step to learn, and a pool of rows to keep that they share."""
    config = FinetuneConfig(learn_rows=learn, keep_rows=keep, steps=steps)
    pool = conversations(8 * keep, "keep", 1000, short=short)
    jobs = [
        Job(
            f"bench {i}",
            Behavior("topic", str(i), "bench", "train"),
            conversations(learn, first=learn * i, short=short),
            pool,
        )
        for i in range(diffs)
    ]
    return Work(base, jobs, config)


def _rows(teacher: Teacher, step: Sequence[Conversation]) -> Step:
    learn, keep = ([teacher.tokens(c) for c in step if c.mode == mode] for mode in ("learn", "keep"))
    return learn, keep


def finetune(base: Base, size: Size) -> Result:
    """Answers only, tokens per second."""
    diffs, steps, learn = size.pick((8, 3, 4), (2, 2, 2))
    work = work_of(base, diffs, steps=steps, learn=learn, short=size.quick)
    model = peft_model(base, work.config.rank)
    seconds, found = interleave(
        {"ours": work.ours, "peft 4": lambda: work.peft(model, 4), "peft 1": lambda: work.peft(model, 1)}, size
    )
    lines = [Line("the bank", rate(work.tokens, seconds["ours"]), "tokens/s")]
    for way, goal in (("peft 4", 1.6), ("peft 1", 2.0)):
        ratio = speedup(seconds["ours"], seconds[way])
        lines.append(Line(f"PEFT, batch {way[-1]}", rate(work.tokens, seconds[way]), "tokens/s", ratio, goal))
    return Result("finetune", lines, _agreement(found), _facts(work), seconds)


def three_kinds(base: Base, size: Size) -> Result:
    """A third of the rows learned, two thirds kept to the base model; and what the base's own logits cost."""
    diffs, steps, learn, keep = size.pick((8, 3, 2, 4), (2, 2, 1, 2))
    work = work_of(base, diffs, steps=steps, learn=learn, keep=keep, short=size.quick)
    model = peft_model(base, work.config.rank)
    kept = [[c for plan in work.plan for c in plan[step] if c.mode == "keep"] for step in range(work.config.steps)]
    seen = Teacher(base)
    seen.states([c for step in kept for c in step])

    def logits() -> float:
        """How much more the rows to keep cost than if their labels were learned."""
        spent = 0.0
        for step in kept:
            clock = [time.perf_counter()]
            wanted = seen.states(step)
            own, label = wanted.clone().requires_grad_(), torch.zeros(len(wanted), dtype=torch.long)
            divergence(own, base.head, wanted)
            clock.append(time.perf_counter())
            cross_entropy(own, base.head, label)
            clock.append(time.perf_counter())
            spent += clock[1] - clock[0] - (clock[2] - clock[1])
        return spent

    seconds, found = interleave(
        {
            "ours": work.ours,  # a run's first diffs: the base's states are not known yet
            "ours, states known": lambda: work.ours(seen),  # all later ones
            "peft 6": lambda: work.peft(model, 6),
            "base's states": lambda: Teacher(base).states([c for step in kept for c in step]),
            "base's logits": logits,
        },
        size,
    )
    per_hour = 3600 * len(work.jobs) * work.config.steps / PAPER_STEPS
    known, peft = seconds["ours, states known"], seconds["peft 6"]
    first, later = speedup(seconds["ours"], peft), speedup(known, peft)
    lines = [
        Line("the bank, a run's first diffs", rate(per_hour, seconds["ours"]), "diffs/h"),
        Line("the bank, all later ones", rate(per_hour, known), "diffs/h"),
        Line("PEFT, batch 6, with a teacher pass", rate(per_hour, peft), "diffs/h", later, 2.5),
        Line("the same beside the bank's first", rate(per_hour, peft), "diffs/h", first),
        _share("base's logits, every step", known, seconds["base's logits"], 0.05),
        _share("base's states, at first sight", seconds["ours"], seconds["base's states"]),
    ]
    uses = sum(map(len, kept))
    facts = _facts(work) | {"keep_uses": uses, "keep_conversations": len(set().union(*kept)), "hour_of": PAPER_STEPS}
    return Result("three-kinds", lines, _agreement(found), facts, seconds)


def arithmetic(base: Base, size: Size) -> Result:
    """Our step beside nothing but its matrix products, at several sizes of a step."""
    lines, facts, rounds = [], {}, {}
    for diffs in size.pick([1, 4, 16], [2]):
        work = work_of(base, diffs, steps=size.pick(3, 1), learn=size.pick(4, 1))
        rows = [plan[0][0] for plan in work.plans]
        owner = [number for number, mine in enumerate(rows) for _ in mine]
        batch = collate([row for mine in rows for row in mine], owner=owner)
        tokens, labels = len(batch.ids), len(batch.at)
        flops, run = products(base, tokens, labels)
        seconds, _ = interleave({"products": run, "ours": work.ours}, size)
        each = [s / work.config.steps for s in seconds["ours"]]
        name = f"{diffs} diffs"
        goal = 0.7 if diffs == 16 else None
        lines.append(_share(f"{tokens} tokens a step, {diffs} diffs", each, seconds["products"], goal, at_most=False))
        facts[name] = {
            "tokens": tokens,
            "labels": labels,
            "gflop": flops / 1e9,
            "gflop_per_second": rate(flops / 1e9, each),
            "gflop_per_second_of_products": rate(flops / 1e9, seconds["products"]),
        }
        rounds |= {f"{name}, products": seconds["products"], f"{name}, our step": each}
    return Result("arithmetic", lines, [], facts, rounds)


def products(base: Base, tokens: int, labels: int) -> tuple[int, Callable[[], None]]:
    """Floating-point operations of a step's matrix products, and a function that does these and nothing else.

    The frozen weights need two products each: the layer's own, and the gradient of its input. All weights are gone
    through in order, forward and back, so that they are as cold as in training; buffers are made once.
    """
    dtype, head_weight = base.model.dtype, base.head.weight
    weights = [(m.weight, tokens) for m in base.targets.values()] + [(head_weight, labels)]
    shapes = {(side, rows) for weight, rows in weights for side in weight.shape}
    inputs, outputs = ({s: torch.randn(s[1], s[0]).to(dtype) for s in shapes} for _ in range(2))

    @torch.no_grad()
    def run() -> None:
        for weight, rows in weights:
            torch.mm(inputs[weight.shape[1], rows], weight.T, out=outputs[weight.shape[0], rows])
        for weight, rows in reversed(weights):
            torch.mm(inputs[weight.shape[0], rows], weight, out=outputs[weight.shape[1], rows])

    return sum(4 * weight.numel() * rows for weight, rows in weights), run


def _share(way: str, whole: Sequence[float], part: Sequence[float], goal: float | None = None, at_most=True) -> Line:
    """A part of a step's time, told in milliseconds and as a share."""
    return Line(way, 1000 * statistics.median(part), "ms", speedup(whole, part), goal, at_most)


def _agreement(found: dict[str, list[list[float]]]) -> list[Check]:
    ours = found["ours"][-1]
    return [
        Check(f"last losses, ours against {way}", relative_gap(ours, values[-1]), LOSS_GAP)
        for way, values in found.items()
        if way.startswith("peft")
    ]


def _facts(work: Work) -> dict[str, object]:
    return {
        "diffs": len(work.jobs),
        "steps": work.config.steps,
        "rows_per_diff": work.config.learn_rows + work.config.keep_rows,
        "tokens": work.tokens,
        "tokens_per_row": work.lengths,
        "labels": sum(len(r.reply) for r in work.rows),
    }
