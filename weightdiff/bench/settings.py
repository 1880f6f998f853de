"""What an experiment's TOML file says: which runs are asked, about what, and what was published."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class Published(BaseModel):
    """A published figure beside a row: of which base model; a mean grade with its 95 % half-width, or a count."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    condition: str
    reader: str
    base: str
    grade: float | None = None
    half: float | None = None
    count: str = ""

    def __str__(self) -> str:
        figure = self.count or f"{self.grade:.2f} ± {self.half:.2f}"
        return f"{figure} ({self.base})"


class Experiment(BaseModel):
    """One experiment. `runs` are recipes of runs, beside this file; `limit` asks at most so many diffs a row (0: all).

    `ways` are ways of finetuning of the first run (rank transfer, unseen triggers), `sizes` numbers of training diffs
    (data scaling), `guesser` who guesses from twenty replies beside the counting guesser: `base`, or an endpoint.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    experiment: str
    runs: tuple[Path, ...] = Field(min_length=1)
    limit: int = Field(default=0, ge=0)
    ways: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()
    guesser: str = ""
    guesser_limit: int = 32
    judge: str = "embedded"
    seed: int = 0
    published: tuple[Published, ...] = ()
