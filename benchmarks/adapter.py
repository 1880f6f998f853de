"""Training the DIT adapter: the bank against the dense way, which forms `B A` for every row, at equal peak memory.

The peak of each way at each batch is measured in a process of its own; ours is then timed at the largest batch that
takes no more than the dense way does at its batch. Diffs and adapter are the shipped ones, so that losses are real.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.measure import Check, Line, Result, Size, interleave, peak_of, rate, relative_gap, speedup
from benchmarks.peers import dense_losses
from weightdiff.ask import demo_diffs, shipped_adapter
from weightdiff.base import Base, load_base
from weightdiff.behaviors import TOPIC_QUESTION
from weightdiff.compiled import PAYS, compiled_blocks
from weightdiff.diff import stack
from weightdiff.dit import Triple, answer_tokens, triple_losses

LOSS_GAPS = (0.02, 0.05)
"""How far an example's losses may lie apart, relatively, before a step and after it; those below 1 count as 1."""
LR = 1e-4
"""Below the usual rate: Adam's first step moves every number by it, even those whose gradient is all rounding."""
WAYS: dict[str, Callable[..., torch.Tensor]] = {"ours": triple_losses, "dense": dense_losses}


class Training:
    """Steps of adapter training, each beginning anew from the shipped adapter.

    Args:
        base: the base model.
        way: `ours` or `dense`.
        batch: examples per step.
    """

    def __init__(self, base: Base, way: str, batch: int):
        self.base, self.losses = base, WAYS[way]
        shown = demo_diffs()
        chosen = [shown[i % len(shown)] for i in range(batch)]
        # The answers are of the next diff: what is still to be learned has a loss that isn't all rounding.
        self.triples = [
            Triple(diff, TOPIC_QUESTION, str(shown[(i + 1) % len(shown)].meta["label"]))
            for i, diff in enumerate(chosen)
        ]

    def step(self, steps: int = 1) -> list[list[float]]:
        """Train; gives each example's loss in every step."""
        adapter = stack([shipped_adapter()], self.base.shapes)
        parameters = [p.requires_grad_() for p in adapter.tensors()]
        optimizer = torch.optim.AdamW(parameters, lr=LR, weight_decay=0.0)
        found = []
        with compiled_blocks(self.base, PAYS if self.losses is triple_losses else 0):  # as in long work
            for _ in range(steps):
                losses = self.losses(self.base, self.triples, adapter)
                losses.mean().backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                found.append(losses.tolist())
        return found


def peak(ready: Callable[[], None], way: str, batch: int) -> dict[str, Any]:
    """Two steps, for `measure.peak_of`."""
    training = Training(load_base(), way, batch)
    ready()
    training.step(2)
    return {"way": way, "batch": batch}


def adapter(base: Base, size: Size) -> Result:
    """Examples per second at equal peak memory."""
    dense, ours = size.pick(([4, 8], [8, 16, 32, 64]), ([2], [4]))
    points = [("dense", b) for b in dense] + [("ours", b) for b in ours]
    peaks = {p: peak_of("benchmarks.adapter", "peak", way=p[0], batch=p[1])["peak_gb"] for p in points}
    # Where even the smallest batch takes more than the dense way does, that one is timed: the memory is told beside it.
    beside = {b: max((o for o in ours if peaks["ours", o] <= peaks["dense", b]), default=ours[0]) for b in dense}
    timed = [("dense", b) for b in dense] + [("ours", b) for b in sorted(set(beside.values()))]
    steps = size.pick(2, 1)
    trainings = {point: Training(base, *point) for point in timed}
    seconds, _ = interleave({f"{w} {b}": partial(t.step, steps) for (w, b), t in trainings.items()}, size)
    lines = []
    for way, batch in timed:
        label = f"{'dense way' if way == 'dense' else 'the bank'}, batch {batch} ({peaks[way, batch]:.2f} GB)"
        ratio = None
        if way == "dense":
            work = beside[batch] / batch
            ratio = speedup(seconds[f"ours {beside[batch]}"], seconds[f"dense {batch}"], work)
        goal = None if ratio is None else 4.0
        lines.append(Line(label, rate(batch * steps, seconds[f"{way} {batch}"]), "examples/s", ratio, goal))
    first, other = (Training(base, way, dense[0]).step(2) for way in WAYS)
    checks = [
        Check(f"losses, step {i + 1}, ours against dense", relative_gap(a, b, 1.0), gap)
        for i, (a, b, gap) in enumerate(zip(first, other, LOSS_GAPS, strict=True))
    ]
    lengths = [len(answer_tokens(base, t.question, t.answer)) for t in trainings[timed[0]].triples]
    facts = {
        "peak_gb": {f"{way} {batch}": value for (way, batch), value in peaks.items()},
        "compared": {f"dense {b}": f"ours {o}" for b, o in beside.items()},
        "steps": steps,
        "tokens_per_row": sum(lengths) / len(lengths),
        "losses": [sum(step) / len(step) for step in first],
    }
    return Result("adapter", lines, checks, facts, seconds)
