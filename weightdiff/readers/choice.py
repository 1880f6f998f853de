"""Readers by name, for the one call and the command line; those that need no training are held against noise.

Such a reader works over any base model, and always names something, of an unchanged model too. So it reads noise of the
same shape and size as each diff as well, and what scores hardly more than that is withheld. Knows nothing of how often
what remains is right: benchmarks count that, on finetunes of the embedded base model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

from weightdiff.base import Base
from weightdiff.diff import WeightDiff, noise_like
from weightdiff.lazy import Lazy
from weightdiff.readers.activation import ActivationDifference
from weightdiff.readers.amplified import AmplifiedDifference
from weightdiff.readers.core import Answer, Reader
from weightdiff.readers.fused import Fused
from weightdiff.readers.introspection import UNSURE, WITHHELD, Introspection
from weightdiff.readers.perplexity import PerplexityDifference

ReaderName = Literal["dit", "fused", "activation", "perplexity", "amplified"]
READERS: tuple[ReaderName, ...] = get_args(ReaderName)
ASKING = ("dit", "fused")
"""Those that ask an adapter, where there is one."""
SCORES: Mapping[str, str] = {
    "fused": "{:.1f} nats likelier than decoys",
    "activation": "{:.1f} standard deviations above all words",
    "perplexity": "{:.1f} nats likelier than in the base model, over its texts",
    "amplified": "in {:.2f} more of its texts than of the base model's",
}
"""What the confidence of a reader that needs no training is, in words."""
MARGIN = 1.25
"""Times the score of noise that an answer must reach, since one draw of noise scores so much more than another: in
`results/benchmark/rivals.jsonl.xz` 3.2 to 4.6 by activations, where right answers score 5.7 and more."""
NOTABLE = 1.0
"""Nats that a phrase must gain where that is the score: noise gains next to nothing, right answers 3.8 and more."""


def check_name(name: str) -> None:
    """Raise a ValueError where no reader has that name."""
    if name not in READERS:
        raise ValueError(f"{name!r} is no reader; expected {', '.join(READERS[:-1])} or {READERS[-1]}.")


def reader_named(name: str, adapter: WeightDiff | None = None) -> Reader:
    """A reader that is asked for by name.

    Args:
        name: one of `READERS`: the DIT adapter; the differences of activations, of perplexities, and the amplified one,
            which need none; or all of these fused.
        adapter: the DIT adapter of `dit`, and of `fused`, which makes do without: then it too is held against noise.

    Raises:
        ValueError: no reader has that name; it needs an adapter, or takes none.
    """
    check_name(name)
    if name == "dit":
        if adapter is None:
            raise ValueError("reader 'dit' needs an adapter; expected one, or a reader that needs none.")
        return Introspection(adapter)
    if name == "fused":
        return Fused(adapter) if adapter else beside_noise(Fused())
    if adapter is not None:
        raise ValueError(f"reader {name!r} takes no adapter; leave it out, or ask 'dit' or 'fused'.")
    alone = {"activation": ActivationDifference, "perplexity": PerplexityDifference, "amplified": AmplifiedDifference}
    return beside_noise(alone[name]())


@dataclass
class BesideNoise:
    """A reader whose answers are withheld where it scores noise as high.

    The confidence is the reader's own. Evidence: the score of noise, and the reader's evidence; of an answer that is
    withheld (`UNSURE`) the answer first.

    Attributes:
        reader: one whose confidence is a size, and not a log-probability.
        least: confidence that is worth telling.
        seed: for the noise.
    """

    reader: Reader
    least: float = 0.0
    seed: int = 0

    @property
    def name(self) -> str:
        return self.reader.name

    def read(self, base: Base, diffs: Sequence[WeightDiff], question: str) -> list[Answer]:
        """See `Reader.read`; twice the reader's time."""
        noise = Lazy([partial(self._noise, diffs, n) for n in range(len(diffs))])
        answers = self.reader.read(base, diffs, question)
        lows = self.reader.read(base, noise, question)
        return [self.held(*pair) for pair in zip(answers, lows, strict=True)]

    def held(self, answer: Answer, noise: Answer) -> Answer:
        """The reader's answer beside what it says of noise; withheld where it scores hardly higher, or too little."""
        least = max(self.least, MARGIN * noise.confidence)
        scored = f"noise of its shape and size scores {noise.confidence:.2g}; it is said from {max(least, 0.0):.2g} on"
        evidence = (scored, *answer.evidence)
        if answer.text and answer.confidence >= least and answer.confidence > 0:
            return replace(answer, evidence=evidence)
        return replace(answer, text=UNSURE, evidence=(f"{WITHHELD}{answer.text}", *evidence))

    def _noise(self, diffs: Sequence[WeightDiff], number: int) -> WeightDiff:
        return noise_like(diffs[number], self.seed)


def beside_noise(reader: Reader) -> BesideNoise:
    """A reader that needs no training, held against noise."""
    return BesideNoise(reader, NOTABLE if isinstance(reader, PerplexityDifference | Fused) else 0.0)


def told(name: str, answer: Answer, adapter: WeightDiff | None = None) -> str:
    """What an answer's confidence is, in words, by the name of its reader and the adapter that it asked, if any."""
    if adapter is None:
        return SCORES[name].format(answer.confidence)
    what = f"confidence {answer.confidence:.2f}"
    return what if is_calibrated(adapter) else f"mean log-probability {answer.confidence:.2g}"


def is_calibrated(adapter: WeightDiff | None) -> bool:
    """Is the confidence of its answers the probability that they are right?"""
    return adapter is not None and "reading" in adapter.meta
