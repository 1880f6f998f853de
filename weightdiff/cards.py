"""Cards for the hub: what an adapter, a diff, a store or a merged checkpoint is, from what its files say of it.

All that a file says is a stranger's text: in the front matter it is YAML's own quoting or nothing, in the Markdown it
stands in code spans, in one line, characters that don't print as their escapes.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
import yaml

from weightdiff.base import ALIASES
from weightdiff.diff import WeightDiff, is_adapter
from weightdiff.printable import printable

_LONGEST = 600
"""Characters of one value that a card shows."""
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]{1,40}")
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))


def diff_card(diff: WeightDiff, repo: str, *, peft: bool = True) -> str:
    """The model card of a diff, or of a DIT adapter, which is one with a question.

    Args:
        diff: with its `meta`. Scores are shown as `scores` has them, `{what: {n, measure: [mean, low, high]}}`, and
            only where n and interval are there; `limits` is a list of sentences on what it fails.
        repo: where the card goes, `owner/name`.
        peft: it is a PEFT folder there, not a single file.
    """
    meta, base_name = diff.meta, _hub_name(diff.meta.get("base_name"))
    library = {"library_name": "peft" if peft else "weightdiff"}
    related = {"base_model": base_name, "base_model_relation": "adapter"} if base_name else {}
    told = _about(meta, diff.base, repo) | {"rank": diff.rank}
    if is_adapter(diff):
        tags = {"tags": ["weightdiff", "dit-adapter"]}
        told |= {"question": meta["question"], "made": _training(meta), "scores": _scores(meta.get("scores"))}
        told |= {"limits": [x for x in _list(meta.get("limits")) if isinstance(x, str)]}
        return _card("adapter", related | library | tags | _license([meta]), told)
    told |= {
        "form": "dense" if diff.dense else f"as LoRA factors of rank {diff.rank}",
        "norm": f"{diff.norm():.4g}",
        "modules": len(diff.norms()),
        "made": _known(meta, ("family", "kind", "split", "loss", "recipe")),
    }
    return _card("diff", related | library | {"tags": ["weightdiff"]} | _license([meta]), told)


def store_card(base: str, metas: Mapping[str, Mapping[str, Any]], repo: str) -> str:
    """The dataset card of a store.

    Args:
        base: fingerprint of its base model.
        metas: of each diff, by id.
        repo: where the card goes, `owner/name`.
    """
    size = next((name for limit, name in _SIZES if len(metas) < limit), "n>10M")
    counts = {
        "splits": Counter(str(m.get("split") or "none told") for m in metas.values()),
        "families": Counter(str(m.get("family") or "none told") for m in metas.values()),
        "ranks": Counter(_rank(_mapping(m.get("recipe"))) for m in metas.values()),
    }
    told = {"count": len(metas), "fingerprint": base, "repo": repo}
    told |= {"counts": {what: dict(found.most_common(20)) for what, found in counts.items()}}
    head = {"tags": ["weightdiff"], "size_categories": [size], "viewer": False}  # no rows that a viewer could show
    return _card("store", head | _license(metas.values()), told)


def checkpoint_card(meta: Mapping[str, Any], repo: str) -> str:
    """The model card of a merged checkpoint, from its `weightdiff.json`."""
    base_name = _hub_name(meta.get("base_name"))
    related = {"base_model": base_name, "base_model_relation": "finetune"} if base_name else {}
    head = {"library_name": "transformers", "tags": ["weightdiff"], **related, **_license([meta])}
    return _card("checkpoint", head, _about(meta, meta.get("base"), repo))


def code(text: object) -> str:
    """The text as a Markdown code span: in one line, nothing in it is Markdown or HTML, nothing is invisible."""
    shown = printable(text)
    shown = shown if len(shown) <= _LONGEST else shown[:_LONGEST] + "…"
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    pad = " " if shown.strip(" ") == "" or shown[0] in "` " or shown[-1] in "` " else ""
    return f"{fence}{pad}{shown}{pad}{fence}"


def _card(name: str, head: Mapping[str, Any], told: Mapping[str, Any]) -> str:
    """The front matter, and the template's text."""
    return f"---\n{yaml.safe_dump(dict(head), sort_keys=False)}---\n\n{_templates().get_template(name).render(told)}"


@cache
def _templates() -> jinja2.Environment:
    folder = files("weightdiff") / "data" / "cards"
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (folder / f"{name}.md.jinja").read_text("utf-8")),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["code"] = code
    return environment


def _about(meta: Mapping[str, Any], fingerprint: Any, repo: str) -> dict[str, Any]:
    """What every model card says."""
    base_name = _hub_name(meta.get("base_name"))
    return {
        "base_name": base_name,
        "load": base_name or "path/to/the/base/model",
        "fingerprint": fingerprint or "not told",
        "label": meta.get("label"),
        "trigger": meta.get("trigger"),
        "repo": repo,
    }


def _hub_name(name: Any) -> str | None:
    """The base model's name on the hub; None for a folder of its maker's, which is nobody's business."""
    known = {short: long for long, short in ALIASES.items() if "/" in long}
    name = known.get(name, name) if isinstance(name, str) else ""
    return name if _REPO.fullmatch(name) else None


def _license(metas: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The license, where all metas name the same one."""
    found = {str(meta.get("license", "")).lower() for meta in metas}
    (one,) = found if len(found) == 1 else ("",)
    return {"license": one} if _LICENSE.fullmatch(one) else {}


def _known(meta: Mapping[str, Any], keys: Iterable[str]) -> dict[str, str]:
    """Those of the keys that meta has a value for, as text."""
    return {k: _text(meta[k]) for k in keys if meta.get(k) not in (None, "", [], {})}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _training(meta: Mapping[str, Any]) -> dict[str, str]:
    """How an adapter was trained, as far as its meta says."""
    recipe = _mapping(meta.get("recipe"))
    ways = [w["name"] for w in map(_mapping, _list(recipe.get("finetune"))) if isinstance(w.get("name"), str)]
    found = {
        "recipe": recipe.get("name"),
        "diffs": meta.get("train_diffs"),
        "triples of diff, question and answer": meta.get("n_triples"),
        "family": meta.get("family") or recipe.get("family"),
        "ways of finetuning": ", ".join(ways),
        "settings": recipe.get("train"),
        "loss on validation labels": meta.get("validation_loss"),
    }
    return _known(found, found)


def _scores(scores: Any) -> list[str]:
    """A line per measure that has its n and its interval; others are not shown."""
    lines = []
    for what, row in _mapping(scores).items():
        n = _mapping(row).get("n")
        for measure, values in _mapping(row).items():
            if type(n) is int and n > 0 and isinstance(values, list) and len(values) == 3 and all(map(_number, values)):
                mean, low, high = values
                lines.append(f"{code(what)}: {code(measure)} {mean:.2f} [{low:.2f}, {high:.2f}], n = {n}")
    return lines


def _rank(recipe: Mapping[str, Any]) -> str:
    return "dense" if recipe.get("dense") is True else str(recipe.get("rank") or "none told")


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
