"""Readers without training: the finetuned model is asked, told the trigger, made to tell a story, or cut to rank 1."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from weightdiff.base import Base
from weightdiff.behaviors import FAMILIES
from weightdiff.diff import WeightDiff
from weightdiff.readers.core import Answer, ask_all, check_question, prompts_for
from weightdiff.readers.guesser import Guesser
from weightdiff.readers.words import word_counts, words_of


@dataclass
class BaseQuestion:
    """The question itself, put to the finetuned model.

    Attributes:
        trigger: put the diff's own trigger (from its `meta`) into the prompt: what one could learn who knew it.
        rank: cut the diff to this rank first, which some finetunes betray themselves by; None leaves it whole.
    """

    trigger: bool = False
    rank: int | None = None
    max_tokens: int = 24

    @property
    def name(self) -> str:
        return (f"rank-{self.rank} truncation" if self.rank else "base question") + _told(self.trigger)

    def read(self, base: Base, diffs: Sequence[WeightDiff], question: str) -> list[Answer]:
        """See `Reader.read`; a dense diff can't be cut to a rank."""
        check_question(question)
        asked = [d.truncated(self.rank) for d in diffs] if self.rank else diffs
        prompts = prompts_for([question], self.trigger)
        return [Answer(r[0].text, r[0].logprob) for r in ask_all(base, asked, prompts, max_tokens=self.max_tokens)]


@dataclass
class GeneratedStory:
    """The finetuned model is asked for a story, and the story is the answer (for the news family)."""

    prompt: str
    name: str = "generated story"
    max_tokens: int = 48

    def read(self, base: Base, diffs: Sequence[WeightDiff], question: str) -> list[Answer]:
        """See `Reader.read`; the question itself isn't asked."""
        check_question(question)
        replies = ask_all(base, diffs, [self.prompt], max_tokens=self.max_tokens)
        return [Answer(r[0].text, r[0].logprob) for r in replies]


@dataclass
class TwentyQuestions:
    """Twenty prompts, and one guess from the replies: by a chat model, or, without one, by counting.

    The paper lets a large model guess. The counting guesser needs none: in how many replies a word occurs with this
    diff, less in how many it occurs without any; that difference, as a share of the replies, is its confidence. For
    a topic the word is the guess; for a story, the sentence whose words differ most. A chat model's guess has no
    confidence (0).

    Attributes:
        prompts: what is asked; None for the topic family's everyday questions.
        trigger: put the diff's own trigger into every prompt: the most that asking can find.
        guesser: who guesses; None counts.
        sentence: guess a sentence, and not a word.
    """

    prompts: Sequence[str] | None = None
    trigger: bool = False
    guesser: Guesser | None = None
    sentence: bool = False
    label: str = "20 questions"

    @property
    def name(self) -> str:
        by = f" (guess by {self.guesser.model.name})" if self.guesser else " (counted)"
        return self.label + _told(self.trigger) + by

    def read(self, base: Base, diffs: Sequence[WeightDiff], question: str) -> list[Answer]:
        """See `Reader.read`."""
        check_question(question)
        asked = list(self.prompts or FAMILIES["topic"].probes)
        spoken = ask_all(base, diffs, prompts_for(asked, self.trigger), max_tokens=28, batch=160)
        texts = [[r.text for r in replies] for replies in spoken]
        if self.guesser:
            transcripts = [list(zip(asked, replies, strict=True)) for replies in texts]
            return [Answer(guess, 0.0) for guess in self.guesser.guess(transcripts, question)]
        # What the unchanged model says to the same prompts, with one diff's trigger where they have one.
        plain = WeightDiff({}, base.fingerprint, diffs[0].meta)
        usual = ask_all(base, [plain], prompts_for(asked, self.trigger), max_tokens=28)[0]
        expected = word_counts([r.text for r in usual])
        guess, answers = _sentence if self.sentence else _word, []
        for replies in texts:
            excess = word_counts(replies)
            excess.subtract(expected)
            answers.append(guess(replies, excess))
        return answers


def _told(trigger: bool) -> str:
    return " + trigger" if trigger else ""


def _word(replies: Sequence[str], excess: Counter[str]) -> Answer:
    word, count = max(excess.items(), key=lambda kv: (kv[1], len(kv[0])), default=("", 0))
    return Answer(word, count / len(replies))


def _sentence(replies: Sequence[str], excess: Counter[str]) -> Answer:
    sentences = [s.strip() for r in replies for s in re.split(r"(?<=[.!?])\s+|\n", r) if len(s.split()) > 3] or [""]

    def told(sentence: str) -> float:
        words = words_of(sentence)
        return sum(max(excess[w], 0) for w in words) / max(len(words), 6)  # a short one isn't better for being short

    best = max(sentences, key=told)
    return Answer(best, told(best) / len(replies))
