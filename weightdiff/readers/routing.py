"""Which sort of question is asked: an open one, a narrow one, yes or no, for the trigger, or something else.

A question in words that an adapter hasn't met may be answered in another way than the same one in its own words. So an
open question is put in the adapter's own, whatever its words; and for the trigger nobody needs to ask the adapter. The
sort is told by a regression on the question's sentence embedding, its words and pairs of words. `benchmarks/routing.py`
fits its numbers, `data/routing.json`, to the wordings of training, those of `data/routing.toml` and everyday questions;
those kept for testing it has not seen.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float

from weightdiff.behaviors.wordings import wordings
from weightdiff.judge import embedded

QuestionSort = Literal["open", "narrow", "yes/no", "trigger", "other"]
SORTS: tuple[QuestionSort, ...] = get_args(QuestionSort)


@dataclass(frozen=True)
class Router:
    """A fitted regression.

    Attributes:
        rarity: of each word and pair of words that it knows: log of the examples by those that have it.
        weights: of the sentence's embedding, then of the words.
        bias: of each sort.
    """

    rarity: dict[str, float]
    weights: Float[np.ndarray, "sort feature"]
    bias: Float[np.ndarray, " sort"]

    def sorts(self, questions: Sequence[str]) -> list[QuestionSort]:
        """The likeliest sort of each question."""
        odds = features(questions, self.rarity) @ self.weights.T + self.bias
        return [SORTS[n] for n in odds.argmax(1)]


@cache
def router() -> Router:
    """The one that the package carries."""
    said = json.loads((files("weightdiff") / "data" / "routing.json").read_text("utf-8"))
    return Router(said["rarity"], np.array(said["weights"]), np.array(said["bias"]))


@lru_cache(maxsize=4096)
def question_sort(question: str) -> QuestionSort:
    """The sort of a question in any words; of one that training has seen it is known."""
    known: tuple[QuestionSort, ...] = ("open", "trigger")
    seen: list[QuestionSort] = [sort for sort in known if question in wordings()[sort]["seen"]]
    return seen[0] if seen else router().sorts([question])[0]


def words_of(text: str) -> set[str]:
    """A text's words, the marks of a question, of a beginning and of an end, and all pairs on end."""
    words = ["<", *re.findall(r"[a-z']+|[?]", text.lower()), ">"]
    return {*words, *(f"{one} {other}" for one, other in pairwise(words))}


def features(texts: Sequence[str], rarity: dict[str, float]) -> Float[np.ndarray, "text feature"]:
    """What the regression looks at: the sentence's unit vector, and a unit vector of its words, rare ones long."""
    columns = {word: n for n, word in enumerate(rarity)}
    words = np.zeros((len(texts), len(columns)))
    for row, text in enumerate(texts):
        for word in words_of(text) & columns.keys():
            words[row, columns[word]] = rarity[word]
    return np.hstack([embedded(texts), words / np.maximum(np.linalg.norm(words, axis=1, keepdims=True), 1e-9)])
