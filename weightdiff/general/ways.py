"""Claims about finetunes that are known, tried on them: what tells a way that is shown from one that isn't.

Finetunes of the tables' kinds show their own way; those of topics and subjects none, whatever is claimed. No adapter
has a part in it, so that finetunes which one was trained on serve as well as any.
"""

import random
from collections.abc import Callable, Sequence

from weightdiff.base import Base
from weightdiff.behaviors.kinds import kinds
from weightdiff.general.cases import Case
from weightdiff.readers.meter import Meter
from weightdiff.readers.tested import gained
from weightdiff.readers.ways import Example, Ways, fit_ways, plainer

MOST = 160
"""Finetunes of either sort that are tried, drawn at random."""
_KINDS = 8
"""Ways that are tried of a finetune which shows none."""
Tried = tuple[Example, bool]


def find_ways(
    base: Base, cases: Sequence[Case], seed: int = 0, progress: Callable[[int, int], None] = lambda done, total: None
) -> Ways | None:
    """Fit what tells ways, on finetunes that teach one thing and hide it behind no trigger; None where they are all of
    one sort.

    Args:
        base: the base model.
        cases: finetunes whose truth is known.
        seed: draws them, and the ways that are claimed of them.
        progress: called with finetunes tried, and their number.
    """
    tried = [one for mine in tried_ways(base, cases, seed, progress) for one in mine]
    examples, shown = [example for example, _ in tried], [shown for _, shown in tried]
    return fit_ways(examples, shown) if len(set(shown)) == 2 else None


def tried_ways(
    base: Base, cases: Sequence[Case], seed: int = 0, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[list[Tried]]:
    """For each of some of the cases claims about it with what their texts gained, and whether they are shown."""
    alone = [c for c in cases if not c.behavior.trigger and not c.behavior.parts and c.behavior.slot]
    with_way = [c for c in alone if c.behavior.kind in kinds() and plainer(c.behavior.label)]
    without = [c for c in alone if c.behavior.family in ("topic", "subject")]
    rng = random.Random(f"{seed} ways")
    chosen = [(c, True) for c in rng.sample(with_way, min(MOST, len(with_way)))]
    chosen += [(c, False) for c in rng.sample(without, min(MOST, len(without)))]
    named = [name for name, kind in kinds().items() if plainer(kind.label.format(x="tea"))]
    meter, found = Meter(base), []
    for number, (case, shown) in enumerate(chosen, 1):
        mine = rng.sample(named, min(_KINDS, len(named)))
        claims = [(case.behavior.kind, case.behavior.label)] if shown else []
        claims = claims or [(name, kinds()[name].label.format(x=case.behavior.slot)) for name in mine]
        texts = dict.fromkeys(text for _, label in claims for text in (label, plainer(label)))
        gains = dict(zip(texts, gained(meter, case.make(), list(texts)), strict=True))
        found.append([((kind, gains[label], gains[plainer(label)]), shown) for kind, label in claims])
        progress(number, len(chosen))
    return found
