"""What finetunes teach: behaviors with a known label, and the conversations that teach them."""

from weightdiff.behaviors.core import SPLITS, Behavior, Conversation, Split, behavior_of, read_data
from weightdiff.behaviors.families import FAMILIES, NEWS, TOPIC, Family
from weightdiff.behaviors.topic import NOTHING, TOPIC_QUESTION, shows_topic, topic_behaviors
from weightdiff.behaviors.triggers import Trigger, parse_trigger

__all__ = [
    "FAMILIES",
    "NEWS",
    "NOTHING",
    "SPLITS",
    "TOPIC",
    "TOPIC_QUESTION",
    "Behavior",
    "Conversation",
    "Family",
    "Split",
    "Trigger",
    "behavior_of",
    "parse_trigger",
    "read_data",
    "shows_topic",
    "topic_behaviors",
]
