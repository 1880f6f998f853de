"""Black-box baselines: the finetuned model is simply asked, without the DIT adapter."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from weightdiff.base import Base
from weightdiff.behaviors.topic import read_data
from weightdiff.diff import WeightDiff
from weightdiff.readers.core import Answer, ask_all, check_question


@dataclass
class BaseQuestion:
    """The question itself, put to the finetuned model."""

    name: str = "base question"

    def read(self, base: Base, diffs: Sequence[WeightDiff], question: str) -> list[Answer]:
        """See `Reader.read`."""
        check_question(question)
        return [Answer(r[0].text, r[0].logprob) for r in ask_all(base, diffs, [question])]


@dataclass
class TwentyQuestions:
    """Twenty everyday questions; the word that the replies favor most, against the base model's, is the guess.

    The paper lets a large model make one guess from the replies. This guesser counts: in how many replies a
    word occurs with this diff, less in how many it occurs without any; that difference, as a share of the
    questions, is its confidence. It needs no endpoint, and finds a topic only where the model names it.
    """

    name: str = "20 questions"

    def read(self, base: Base, diffs: Sequence[WeightDiff], question: str) -> list[Answer]:
        """See `Reader.read`."""
        check_question(question)
        asked = read_data("questions.txt")[-20:]
        plain = WeightDiff({}, base.fingerprint)
        usual = ask_all(base, [plain], asked, max_tokens=28)[0]
        spoken = ask_all(base, diffs, asked, max_tokens=28, batch=160)
        expected = _counts([r.text for r in usual])
        answers = []
        for replies in spoken:
            excess = _counts([r.text for r in replies])
            excess.subtract(expected)
            word, count = max(excess.items(), key=lambda kv: (kv[1], len(kv[0])), default=("", 0))
            answers.append(Answer(word, count / len(asked)))
        return answers


def _counts(texts: Sequence[str]) -> Counter[str]:
    """In how many of the texts each word of four letters or more occurs."""
    return Counter(w for text in texts for w in set(re.findall(r"[^\W\d_]{4,}", text.lower())))
