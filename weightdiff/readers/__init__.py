"""Ways to answer a question about a diff, all behind one interface: many diffs in, one answer each out."""

from weightdiff.readers.baselines import BaseQuestion, GeneratedStory, TwentyQuestions
from weightdiff.readers.core import Answer, Reader
from weightdiff.readers.guesser import Guesser
from weightdiff.readers.introspection import Introspection

__all__ = ["Answer", "BaseQuestion", "GeneratedStory", "Guesser", "Introspection", "Reader", "TwentyQuestions"]
