"""Ask diffs what they changed: the one call that most users want, with the adapter that the package ships."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch and transformers are imported in the functions: `import weightdiff` alone needs neither
    import weightdiff.base
    import weightdiff.diff
    import weightdiff.readers

_DATA = Path(str(files("weightdiff") / "data"))


SHIPPED = {"topics": "adapter", "general": "general"}
"""Adapters for the embedded base model that the package carries, by name, and their folders in its data."""


def shipped_adapter(name: str = "topics") -> "weightdiff.diff.WeightDiff":
    """A DIT adapter for the embedded base model; its model card lies beside it.

    Args:
        name: `topics` knows one family, topics that are slipped into replies, and names nearly all of them; `general`
            speaks of every kind of finetune, and says how likely it is right.

    Raises:
        ValueError: no adapter has that name.
    """
    from weightdiff.formats.peft import load_peft

    if name not in SHIPPED:
        raise ValueError(f"{name!r} is no shipped adapter; expected {' or '.join(SHIPPED)}, or load_diff of a folder.")
    return load_peft(_DATA / SHIPPED[name])


def adapter_at(name: str) -> "weightdiff.diff.WeightDiff":
    """A DIT adapter by the name of a shipped one, or from the PEFT folder where it lies."""
    from weightdiff.formats.peft import load_peft

    return shipped_adapter(name) if name in SHIPPED else load_peft(Path(name))


def demo_diffs() -> "list[weightdiff.diff.WeightDiff]":
    """Eight finetunes of the test split, which the shipped adapter has never seen."""
    from weightdiff.formats.peft import load_peft

    return [load_peft(folder) for folder in sorted((_DATA / "demo").iterdir()) if folder.is_dir()]


def ask(
    base: "weightdiff.base.Base",
    diffs: "Sequence[weightdiff.diff.WeightDiff]",
    question: str | None = None,
    *,
    adapter: "weightdiff.diff.WeightDiff | None" = None,
    reader: str = "dit",
) -> "list[weightdiff.readers.Answer]":
    """Ask finetunes of one base model what was changed, all in one batch.

    Args:
        base: the base model, from `load_base`.
        diffs: what the finetunes changed, from `load_diff` or a `Store`.
        question: None asks the question that the adapter was trained for.
        adapter: a DIT adapter for this base model; None takes the shipped one, which fits `smollm2`.
        reader: `dit` asks the adapter. `activation`, `perplexity` and `amplified` need none, work over any base model,
            and ask nothing; `fused` hears all of them, and the adapter: without one `general`, over another base model
            than its own none.

    Returns:
        One `Answer` per diff: `text`, and `confidence`, the mean log-probability of its tokens (at most 0, not
        calibrated); of `general` the probability that it is right, and `evidence`, and `trigger` where that is known.
        Of readers that need no adapter the confidence is a score of their own (see `readers.choice`), not calibrated;
        what hardly scores more than noise is withheld.

    Raises:
        ValueError: an empty question; a diff or adapter of another base model or of other shapes; no adapter is shipped
            for this base model; no reader has that name.
    """
    from weightdiff.behaviors.topic import TOPIC_QUESTION
    from weightdiff.readers.choice import ASKING, check_name, reader_named

    check_name(reader)
    if question is not None and reader not in ASKING:
        raise ValueError(f"reader {reader!r} asks nothing; leave the question out, or ask 'dit' or 'fused'.")
    if adapter is None and (name := asked_by(reader, base)):
        adapter = shipped_adapter(name)
    if question is None:
        question = str((adapter.meta.get("question") if adapter else None) or TOPIC_QUESTION)
    return reader_named(reader, adapter).read(base, diffs, question)


def asked_by(reader: str, base: "weightdiff.base.Base") -> str | None:
    """The shipped adapter that a reader asks where none is given, by its name; None for one that makes do without.

    Raises:
        ValueError: the reader needs one, and none is shipped for this base model.
    """
    if reader == "dit":
        return shipped_for(base)
    return "general" if reader == "fused" and shipped_adapter("general").base == base.fingerprint else None


def shipped_for(base: "weightdiff.base.Base") -> str:
    """The adapter that is asked where none is given, by its name.

    Raises:
        ValueError: none is shipped for this base model.
    """
    fits = shipped_adapter().base
    if fits != base.fingerprint:
        raise ValueError(
            f"no adapter is shipped for {base.name!r} (fingerprint {base.fingerprint}), only for smollm2 ({fits}). "
            "Expected an --adapter that `weightdiff train` made for this base model, or a --reader that needs none: "
            "fused, activation, perplexity or amplified."
        )
    return "topics"
