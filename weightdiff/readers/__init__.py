"""Ways to answer a question about a diff, all behind one interface: many diffs in, one answer each out."""

from weightdiff.readers.baselines import BaseQuestion, TwentyQuestions
from weightdiff.readers.core import Answer, Reader
from weightdiff.readers.introspection import Introspection

__all__ = ["Answer", "BaseQuestion", "Introspection", "Reader", "TwentyQuestions"]
