"""Diffs to ask about or to learn from: a run's finetunes, nulls of their shapes, sums of two; and the hints of each.

A sum of two finetunes stands for one that teaches both, at no cost: the second is laid on at a part of the first's
size. Hints are looked for once, and kept in a file beside the diffs.
"""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from weightdiff.arithmetic import add
from weightdiff.base import Base
from weightdiff.behaviors import NOTHING, Behavior, Split, behavior_of
from weightdiff.diff import WeightDiff
from weightdiff.general.draw import several
from weightdiff.general.nulls import null_kind, null_of
from weightdiff.general.settings import GeneralRecipe
from weightdiff.jsonl import append_jsonl, read_jsonl
from weightdiff.lazy import Lazy
from weightdiff.readers.hints import Hint, HintConfig, Hinter, hint_of
from weightdiff.store import Store

PARTS = (0.5, 0.9)
"""Between which lies the size of a sum's second finetune, seen from the one before it."""
_THREE = 0.3
"""Share of the sums that have three parts."""
AT_ONCE = 32
"""Diffs whose hints are looked for before they are written down."""


@dataclass(frozen=True)
class Case:
    """A diff to ask about: a finetune of the split, a null of the shape of one, or a sum.

    Attributes:
        identity: of the diff in the store, or `null N`, or `sum N`.
        behavior: the truth.
        make: loads or makes the diff.
        key: what the diff hangs on, beside its identity: another one once it is made otherwise.
    """

    identity: str
    behavior: Behavior
    make: Callable[[], WeightDiff]
    key: str = ""


def finetuned(store: Store, ids: Sequence[str]) -> list[Case]:
    """A case for each diff of a store."""
    return [
        Case(identity, behavior_of(meta), partial(load_one, store, identity), f"{meta.get('data')} {meta.get('loss')}")
        for identity, meta in store.metas(ids).items()
    ]


def cases_of(store: Store, ids: Sequence[str], split: Split) -> list[Case]:
    """A case for each diff, and one for a null made of each third; none of full finetunes."""
    cases = []
    for number, case in enumerate(finetuned(store, ids)):
        cases.append(case)
        if number % 3 == 0 and not is_full(case.identity):
            kind = null_kind(number // 3)
            cases.append(_null(f"null {number // 3}: {kind}", "null", kind, case, split, number // 3))
    return cases


def taught_cases(store: Store, recipe: GeneralRecipe, ids: Sequence[str], split: Split) -> list[Case]:
    """What the adapter learns to speak of: finetunes of families that aren't left out, nulls of their shapes, sums."""
    cases = known_cases(recipe, finetuned(store, ids))
    nulls = []
    for number in range(round(len(cases) * recipe.nulls / (1 - recipe.nulls))):
        model = random.Random(f"{recipe.seed} null {split} {number}").choice(cases)
        nulls.append(_null(f"null {split} {number}", "benign", "null", model, split, number))
    return cases + nulls + sums_of(cases, round(len(alone(cases)) * recipe.sums), f"{recipe.seed} sum {split}")


def known_cases(recipe: GeneralRecipe, cases: Sequence[Case]) -> list[Case]:
    """Those of the cases that teach nothing of a family that the recipe leaves out."""
    return [case for case in cases if not families_of(case.behavior) & set(recipe.without)]


def is_full(identity: str) -> bool:
    """Is it the id of a full finetune?"""
    return identity.split(":")[0].split()[1] == "full"


def families_of(behavior: Behavior) -> set[str]:
    """The family of a behavior, or those of its parts."""
    return {part.family for part in behavior.parts} or {behavior.family}


def _null(identity: str, family: str, kind: str, model: Case, split: Split, number: int) -> Case:
    made = partial(load_null, model.make, split, number)
    return Case(identity, Behavior(family, NOTHING, kind, split), made, f"{model.identity} {model.key}")


def alone(cases: Sequence[Case]) -> list[Case]:
    """Those that teach one thing, behind no trigger."""
    some = [c for c in cases if c.behavior.family not in ("benign", "null")]
    return [c for c in some if not c.behavior.trigger and not c.behavior.parts]


def sums_of(cases: Sequence[Case], count: int, identity: str) -> list[Case]:
    """So many sums of cases that teach one thing, drawn by what their ids begin with; none of fewer than three."""
    some = alone(cases)
    return [sum_of(some, f"{identity} {number}") for number in range(count)] if len(some) > 2 else []


def sum_of(cases: Sequence[Case], identity: str) -> Case:
    """Two or three of the cases in one, drawn by its identity; the first is the largest."""
    rng = random.Random(identity)
    parts = rng.sample(cases, 3 if rng.random() < _THREE else 2)
    shares = [1.0]
    for _ in parts[1:]:
        shares.append(shares[-1] * rng.uniform(*PARTS))
    key = " + ".join(f"{part.identity} {part.key} {share:.3f}" for part, share in zip(parts, shares, strict=True))
    made = partial(load_sum, [part.make for part in parts], shares)
    return Case(identity, several([part.behavior for part in parts]), made, key)


def load_one(store: Store, identity: str) -> WeightDiff:
    """One diff of a store."""
    return store.load([identity])[0]


def load_null(load: Callable[[], WeightDiff], split: Split, number: int) -> WeightDiff:
    """The `number`-th null of a split, of the shape of the diff that is loaded for it."""
    return null_of(load(), split, number)


def load_sum(loads: Sequence[Callable[[], WeightDiff]], shares: Sequence[float]) -> WeightDiff:
    """Finetunes added up, each with a norm of its share of the first one's."""
    first, *others = (load() for load in loads)
    total, size = first, first.norm()
    for other, share in zip(others, shares[1:], strict=True):
        total = add(total, other.scaled(share * size / max(other.norm(), 1e-9)))
    return total


def hints_of(
    base: Base,
    cases: Sequence[Case],
    config: HintConfig,
    path: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Hint]:
    """The hint of each case, from a file, or looked for and added to it.

    Args:
        base: the base model.
        cases: what to look at.
        config: which hints.
        path: the file, JSON lines; several processes may add to it.
        progress: called with hints that are there, and their number.
    """
    found = read_jsonl(path) if path.exists() else []
    known = {r["key"]: r["hint"] for r in found if "norm" in r["hint"]}  # those of an older form are looked for anew
    keys = [hashlib.sha256(f"{c.identity} {c.key} {config.model_dump_json()}".encode()).hexdigest() for c in cases]
    missing = [(key, case) for key, case in zip(keys, cases, strict=True) if key not in known]
    hinter = Hinter(base, config) if missing else None
    for start in range(0, len(missing), AT_ONCE):
        some = missing[start : start + AT_ONCE]
        assert hinter is not None
        for (key, _), hint in zip(some, hinter.read(Lazy([case.make for _, case in some])), strict=True):
            known[key] = hint.to_json()
            append_jsonl(path, {"key": key, "hint": known[key]})
        progress(len(cases) - len(missing) + start + len(some), len(cases))
    return [hint_of(known[key]) for key in keys]
