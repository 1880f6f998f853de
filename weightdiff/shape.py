"""The shape of a base model from its config alone, and the rate at which this machine multiplies such matrices.

No weights are loaded, and nothing is fetched for the models that `data/models.toml` knows.
"""

import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

import torch

from weightdiff.base import ALIASES, choose_dtype, target_modules
from weightdiff.recipe import Way

EFFICIENCY = 0.4
"""The share of a plain matrix product's rate that a whole step is taken to reach."""


@dataclass(frozen=True)
class ModelShape:
    """What a plan needs to know of a base model.

    Attributes:
        name: what the recipe calls it.
        parameters: all of the model's, those that read pictures too.
        hidden, vocab, layers: of the text decoder.
        cached: numbers that one token leaves in the key-value cache of one layer.
        linears: `(kind, out, in)` of each linear layer that a finetune may change.
    """

    name: str
    parameters: int
    hidden: int
    vocab: int
    layers: int
    cached: int
    linears: tuple[tuple[str, int, int], ...]

    @property
    def decoder(self) -> int:
        """Parameters that every token is multiplied with: the linear layers of the decoder blocks."""
        return sum(out * inn for _, out, inn in self.linears)

    def low_rank(self, rank: int, modules: Sequence[str] = ()) -> int:
        """Parameters of one low-rank diff."""
        return sum(rank * (out + inn) for kind, out, inn in self.linears if not modules or kind in modules)

    def dense(self, modules: Sequence[str] = ()) -> int:
        """Parameters of one dense diff: of the whole model, or of some kinds of linear layers."""
        return sum(out * inn for kind, out, inn in self.linears if kind in modules) if modules else self.parameters

    def of(self, way: Way) -> int:
        """Parameters of one diff made in a way.

        Raises:
            ValueError: the way names linear layers that the model hasn't.
        """
        if unknown := set(way.modules) - (kinds := {kind for kind, _, _ in self.linears}):
            raise ValueError(
                f"{way.name!r} has modules = {sorted(unknown)}, and {self.name!r} has no linear layers of these names; "
                f"it has {', '.join(sorted(kinds))}. Correct the recipe's modules."
            )
        return self.dense(way.modules) if way.dense else self.low_rank(way.rank, way.modules)


def shape_of(name: str) -> ModelShape:
    """The shape of a base model, from its config alone: of a known model, a folder, or a hub id if it can be reached.

    Raises:
        ValueError: no config of that name.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    known = tomllib.loads((files("weightdiff") / "data" / "models.toml").read_text("utf-8"))
    name = ALIASES.get(name, name)
    try:
        config = (
            AutoConfig.for_model(**known[name])
            if name in known
            else AutoConfig.from_pretrained(name, trust_remote_code=False)
        )
        with torch.device("meta"):  # shapes without numbers
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, KeyError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"the base model {name!r} has no config that can be read here: {reason} Expected a folder with "
            f"config.json, a hub id that this machine can reach, or one of {', '.join(known)}."
        ) from None
    text = config.get_text_config()
    heads = text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    return ModelShape(
        name,
        sum(p.numel() for p in model.parameters()),
        text.hidden_size,
        text.vocab_size,
        text.num_hidden_layers,
        2 * head_dim * (getattr(text, "num_key_value_heads", None) or heads),
        tuple((n.split(".")[-1], m.out_features, m.in_features) for n, m in target_modules(model).items()),
    )


def auto_dtype() -> torch.dtype:
    """What `load_base` would hold weights in on this machine."""
    return choose_dtype("auto", "cuda" if torch.cuda.is_available() else "cpu")


def measured_rate(shape: ModelShape, seconds: float = 1.0) -> float:
    """The rate, in FLOP/s, that a run on this machine can be expected to keep up.

    `EFFICIENCY` of what 512 tokens times the model's largest linear layer reaches in about a second.
    """
    device, dtype = "cuda" if torch.cuda.is_available() else "cpu", auto_dtype()
    _, out, inn = max(shape.linears, key=lambda linear: linear[1] * linear[2])
    x, weight = (torch.ones(n, inn, dtype=dtype, device=device) for n in (512, out))

    def take() -> float:
        started = time.monotonic()
        for _ in range(times):
            torch.mm(x, weight.T)
        if device == "cuda":
            torch.cuda.synchronize()
        return time.monotonic() - started

    times = 1
    take()  # the first is slower
    while (taken := take()) < seconds / 4:
        times *= 2
    return EFFICIENCY * times * 2 * len(x) * out * inn / taken
