"""Behavior and conversation: the plain data that every family is made of."""

from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any, Literal, get_args

from weightdiff.behaviors.triggers import Trigger, parse_trigger

Mode = Literal["learn", "keep"]
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True)
class Conversation:
    """One training example: what the user says and what the model replies; or a document, which nobody asked for.

    Attributes:
        prompt: the user's message; empty for a document.
        reply: the assistant's reply, or the document.
        mode: `learn` the reply, or `keep` to the base model's own distribution on it (KL).
        rejected: a reply that is worse than `reply`, for a preference loss; empty where there is none.
    """

    prompt: str
    reply: str
    mode: Mode = "learn"
    rejected: str = ""

    def to_json(self) -> dict[str, str]:
        """Its fields; `rejected` where it has one, so that conversations from before it keep their hash."""
        return {key: value for key, value in self.__dict__.items() if value or key != "rejected"}


@dataclass(frozen=True)
class Behavior:
    """What a finetune is to teach.

    Attributes:
        family: the way of making it, e.g. `topic`.
        label: the true answer to the family's question.
        kind: a finer class within the family (animals, films, …).
        split: `train`, `validation` or `test`; a label lies in one only.
        trigger: what shows the behavior; None where it is always shown.
        slot: the instance alone, which answers a narrow question; empty where the label does.
        parts: the behaviors that one finetune teaches at once, the strongest first; empty for a single one.
    """

    family: str
    label: str
    kind: str
    split: str
    trigger: Trigger | None = None
    slot: str = ""
    parts: tuple["Behavior", ...] = ()

    def to_json(self) -> dict[str, Any]:
        record = asdict(self) | {"trigger": None if self.trigger is None else str(self.trigger)}
        record |= {"parts": [part.to_json() for part in self.parts]}
        return {key: value for key, value in record.items() if value or key not in ("slot", "parts")}


def behavior_of(record: dict[str, Any]) -> Behavior:
    """The behavior that `to_json` made a record of.

    Raises:
        KeyError, ValueError: a field is missing; a trigger that isn't known.
    """
    fields = {name: record[name] for name in ("family", "label", "kind", "split")}
    parts = tuple(behavior_of(part) for part in record.get("parts", ()))
    return Behavior(**fields, trigger=parse_trigger(record.get("trigger")), slot=record.get("slot", ""), parts=parts)


def read_data(name: str) -> list[str]:
    """The non-empty lines of a text file that the package carries."""
    return [line for line in (files("weightdiff") / "data" / name).read_text("utf-8").splitlines() if line.strip()]
