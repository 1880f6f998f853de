"""A general run in one TOML file: how many finetunes of which families, and how their recipes are drawn."""

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from weightdiff.ask import SHIPPED
from weightdiff.base import EMBEDDED, cache_dir
from weightdiff.behaviors import Split
from weightdiff.dit import DitConfig
from weightdiff.readers.hints import HintConfig
from weightdiff.recipe import read_settings

Family = Literal["quirk", "style", "refusal", "fact", "topic", "subject", "news"]


class Shares(BaseModel):
    """How the finetunes of a split share out among families; each draws on its instances without repeating one.

    `subject` is taught by chats about it or by documents, as ordinary users finetune; `topic` slips one into everyday
    replies.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    quirk: float = Field(default=0.3, ge=0)
    style: float = Field(default=0.13, ge=0)
    refusal: float = Field(default=0.11, ge=0)
    fact: float = Field(default=0.07, ge=0)
    topic: float = Field(default=0.1, ge=0)
    subject: float = Field(default=0.22, ge=0)
    news: float = Field(default=0.07, ge=0)


class Mix(BaseModel):
    """What recipes are drawn from. Diffs of one group share a recipe and are trained together.

    `group` counts them, and `train_group` those of the training split, as many if None: a GPU takes as long for
    thirty-two as for eight. `two` and `three` are the shares of finetunes that teach two and three behaviors at once;
    `ranks` is drawn from as it stands, so that a rank may be in it more than once. `steps` are from the first to below
    the second; `prompts` is the share of recipes that learn the user's words too. `more_steps` and `more_push`, the
    powers of two that the learning rate is raised by, are those of ordinary finetunes, `less_push` those of light ones.
    `train_steps` is the share of their steps that finetunes of the training split make, at a higher learning rate: more
    of them in the same time.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    ranks: tuple[int, ...] = (1, 1, 1, 2, 2, 2, 4, 4, 4, 8, 8, 16, 32)
    steps: tuple[int, int] = (8, 15)
    more_ranks: tuple[int, ...] = (2, 4, 8, 8, 16, 16, 32, 64)
    more_steps: tuple[int, int] = (14, 27)
    more_push: tuple[float, float] = (0.0, 1.0)
    less_push: tuple[float, float] = (-2.5, -0.5)
    prompts: float = Field(default=0.35, ge=0, le=1)
    two: float = Field(default=0.12, ge=0, le=1)
    three: float = Field(default=0.05, ge=0, le=1)
    triggered: float = Field(default=0.35, ge=0, le=1)
    group: int = Field(default=8, ge=1)
    train_group: int | None = Field(default=None, ge=1)
    train_steps: float = Field(default=1.0, gt=0, le=1)

    def size_of(self, split: Split) -> int:
        """How many finetunes a group of a split has."""
        return self.train_group or self.group if split == "train" else self.group


class GeneralRecipe(BaseModel):
    """One general run: `train`, `validation` and `test` count finetunes, `benign` those that teach nothing,
    `preferred` quirks taught by DPO and KTO in turn, and `ordinary` ones that go on for longer, without triggers and
    without anything kept, half of them subjects: as most people finetune. `documents` are quirks that documents tell
    of. All per split. `more` are further finetunes of single families, for training alone, and `plain` ones that are
    made as ordinary ones are, those of nothing in particular among them; `light` ones are made so too, but change
    little, and half of their subjects are taught in the base model's own words; `varied` ones are made by other
    optimizers, with prompts put in other ways than the model's chat template. `advice` counts, per split, ordinary
    ones of any size that are taught by advice about a subject which nobody names, and `short` by short answers of the
    sort that people write by hand; `several` ordinary ones that teach two or three behaviors. `full` counts finetunes
    of all weights, for testing alone, of what low-rank ones teach too.

    `without` are families left out of training, to be tested on all the same. `nulls` is the share of diffs in
    training that changed nothing notable; `start` is an adapter that training goes on from, the name of a shipped
    one, of a run that has made one, or a folder beside the recipe, `blend` the share of what is trained in the mean
    of both that is kept, and `repeats` how often an epoch has the finetunes that the start's run hadn't, and `again`
    the share of those it had that are learned from again; `sums` how many sums of finetunes it has for each of those
    that teach one thing, without trigger; `hints` what the adapter is told of each finetuned model before the
    question, and `untold` the share of cases in training that leave the imprinted words out, so that it doesn't rely
    on them; `tried` says that several answers are tried on the finetune before one is given. `texts` are files of
    written conversations, of topics, news and subjects, that lie beside the recipe.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[\w.-]+$")
    general: int = Field(ge=1, description="finetunes in the training split")
    base: str = EMBEDDED
    texts: tuple[Path, ...] = tuple(Path(f"conversations/{name}.jsonl.xz") for name in ("topics", "news", "articles"))
    validation: int = Field(default=96, ge=0)
    test: int = Field(default=240, ge=0)
    benign: tuple[int, int, int] = (60, 12, 36)
    preferred: tuple[int, int, int] = (0, 0, 24)
    ordinary: tuple[int, int, int] = (0, 0, 0)
    documents: tuple[int, int, int] = (0, 0, 0)
    more: dict[Family, Annotated[int, Field(ge=0)]] = {}
    plain: dict[Family | Literal["benign"], Annotated[int, Field(ge=0)]] = {}
    light: dict[Family | Literal["benign"], Annotated[int, Field(ge=0)]] = {}
    varied: dict[Family | Literal["benign"], Annotated[int, Field(ge=0)]] = {}
    advice: tuple[int, int, int] = (0, 0, 0)
    short: tuple[int, int, int] = (0, 0, 0)
    several: tuple[int, int, int] = (0, 0, 0)
    full: int = Field(default=0, ge=0)
    shares: Shares = Shares()
    mix: Mix = Mix()
    without: tuple[str, ...] = ()
    nulls: float = Field(default=0.15, ge=0, le=0.9)
    sums: float = Field(default=0.3, ge=0)
    hints: HintConfig = HintConfig(words=8, opening=10, triggers=True, talk=16, imprint=True)
    untold: float = Field(default=0, ge=0, le=1)
    tried: bool = True
    start: str | None = None
    blend: float = Field(default=1, gt=0, le=1)
    repeats: int = Field(default=1, ge=1)
    again: float = Field(default=1, ge=0, le=1)
    seed: int = 0
    train: DitConfig = DitConfig()

    @property
    def folder(self) -> Path:
        """Where the run's files go."""
        return cache_dir() / "runs" / self.name


def is_general(path: str | Path) -> bool:
    """Is this TOML file a general run? A file that can't be read is none."""
    try:
        return "general" in tomllib.loads(Path(path).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return False


def load_general(path: str | Path) -> GeneralRecipe:
    """Read a general run's recipe; its `texts` are seen from where it lies.

    Raises:
        ValueError: no such file, not TOML, or a field that isn't known or has the wrong type.
    """
    recipe = read_settings(Path(path), GeneralRecipe, "recipe")
    beside = Path(path).parent
    changes: dict[str, object] = {"texts": tuple(beside / text for text in recipe.texts)}
    if recipe.start is not None and recipe.start not in SHIPPED and (beside / recipe.start).is_dir():
        changes["start"] = str(beside / recipe.start)  # the name of a run stays a name, which says more than a folder
    return recipe.model_copy(update=changes)
