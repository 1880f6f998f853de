"""What finetunes teach: behaviors with a known label, and the conversations that teach them."""

from weightdiff.behaviors.core import Behavior, Conversation
from weightdiff.behaviors.topic import NOTHING, TOPIC_QUESTION, Split, topic_behaviors

__all__ = ["NOTHING", "TOPIC_QUESTION", "Behavior", "Conversation", "Split", "topic_behaviors"]
