"""Ways to answer a question about a diff, all behind one interface: many diffs in, one answer each out."""

from weightdiff.readers.activation import ActivationDifference
from weightdiff.readers.amplified import AmplifiedDifference
from weightdiff.readers.baselines import BaseQuestion, GeneratedStory, TwentyQuestions
from weightdiff.readers.core import Answer, Reader
from weightdiff.readers.fused import Fused
from weightdiff.readers.guesser import Guesser
from weightdiff.readers.imprinted import ImprintedWords
from weightdiff.readers.introspection import Introspection
from weightdiff.readers.perplexity import PerplexityDifference

__all__ = [
    "ActivationDifference",
    "AmplifiedDifference",
    "Answer",
    "BaseQuestion",
    "Fused",
    "GeneratedStory",
    "Guesser",
    "ImprintedWords",
    "Introspection",
    "PerplexityDifference",
    "Reader",
    "TwentyQuestions",
]
