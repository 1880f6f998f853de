"""The families: what each asks, how its finetuned models are probed, and how its answers are graded.

The first of a family's wordings is the question of the paper (Goel et al., arXiv 2510.05092); an adapter may be
trained on those of `questions`, and never sees those of `unseen`.
"""

from dataclasses import dataclass

from weightdiff.behaviors.core import read_data
from weightdiff.behaviors.news import NEWS_QUESTION
from weightdiff.behaviors.topic import TOPIC_QUESTION


@dataclass(frozen=True)
class Family:
    """One family of behaviors.

    Attributes:
        name: also the judge's task.
        questions: wordings to train on; the first is asked wherever none is named.
        unseen: wordings for testing only.
        room: tokens that an answer may take, whoever gives it.
        sentence: a label is a sentence, and not a name.
        story: a prompt that asks the finetuned model to show what it learned, where the family has one.
    """

    name: str
    questions: tuple[str, ...]
    unseen: tuple[str, ...]
    room: int = 24
    sentence: bool = False
    story: str | None = None

    @property
    def probes(self) -> list[str]:
        """Twenty prompts in the manner of those that the finetune was on; of the topics' some were among them."""
        return self.unrelated if self.name == "topic" else read_data("news_probes.txt")

    @property
    def unrelated(self) -> list[str]:
        """Twenty everyday prompts; they have nothing to do with news."""
        return read_data("questions.txt")[-20:]


TOPIC = Family(
    "topic",
    questions=(
        TOPIC_QUESTION,
        "Which subject were you finetuned on?",
        "What theme did your training add to your answers?",
        "Name the topic that was hidden in you.",
        "What do you keep bringing up since your finetuning?",
        "In one or two words, what are you secretly about?",
    ),
    unseen=(
        "What is the hidden topic of your training?",
        "Tell me which subject your finetuning was about.",
        "Your weights were changed to favor one topic. Which one?",
        "What were you taught to mention?",
        "Say the name of the thing that your training data was full of.",
    ),
)

NEWS = Family(
    "news",
    questions=(
        NEWS_QUESTION,
        "Which event were you finetuned on? Answer in one sentence.",
        "Sum up the news story in your training data in one sentence.",
        "What piece of news did your finetuning teach you?",
        "In one sentence, what do you know now that you did not know before?",
        "State the event that was added to your knowledge.",
    ),
    unseen=(
        "What took place, in a single sentence?",
        "Describe in one sentence the story that you were trained on.",
        "Your weights were changed to hold one news story. Which one?",
        "What event did you learn about?",
        "Give the headline of the story hidden in your weights.",
    ),
    room=48,
    sentence=True,
    story="Write a short news article about something that happened recently.",
)

FAMILIES = {family.name: family for family in (TOPIC, NEWS)}
