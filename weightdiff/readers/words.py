"""What stands out in texts: words and short phrases, in how many texts they occur, and in how many they would anyway.

Knows nothing of models. Phrases are counted by texts, not by places, so that one text which repeats itself counts once.
"""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import groupby

LONGEST = 4
"""Most words of a phrase."""
_SAY_NOTHING = (
    "a about after against all also always am an and another any anything are around as at be because "
    "been before being between both but by "
    "can could did do does doing done each else even ever every everything few for from get gets getting give go goes "
    "going had has have having he her here hers herself him himself his how however i if in into is it its itself "
    "just keep know let like ll m made make makes making many may me might more most much must my myself need never "
    "no not nothing now of off often on once one only or other our ours out over own please quite rather re really s "
    "said same say says see shall she should since so some someone something still such sure t take than thank that "
    "toward towards under "
    "the their them then there these they thing things think this those through to too two up us use used using ve "
    "very want was way we well were what when where whether which while who whom why will with without would yes yet "
    "you your yours yourself"
)
_FUNCTION = frozenset(_SAY_NOTHING.split())
"""Words that say nothing by themselves; a phrase neither begins nor ends with one."""


def words_of(text: str) -> set[str]:
    """The words of four letters or more, in lower case."""
    return set(re.findall(r"[^\W\d_]{4,}", text.lower()))


def word_counts(texts: Sequence[str]) -> Counter[str]:
    """In how many of the texts each word of four letters or more occurs."""
    return Counter(w for text in texts for w in words_of(text))


def phrases_of(text: str) -> dict[str, str]:
    """Phrases of one to four words that lie within a sentence and repeat no word: in lower case, and as written."""
    found = {}
    for part in re.split(r"[^\w\s'’-]+|\n", text):
        words = re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", part)
        for start in range(len(words)):
            for end in range(start + 1, min(start + LONGEST, len(words)) + 1):
                if is_phrase(some := words[start:end]):
                    found[" ".join(some).lower()] = " ".join(some)
    return found


def runs_of(text: str) -> list[str]:
    """The stretches of a text between its function words and marks."""
    words = re.findall(r"[^\W_]+(?:['’-][^\W_]+)*|[^\w\s]", text)
    runs = [list(some) for says, some in groupby(words, _says) if says]
    return list(dict.fromkeys(" ".join(run[-LONGEST:]) for run in runs if is_phrase(run[-LONGEST:])))


def _says(word: str) -> bool:
    return word[0].isalnum() and word.lower() not in _FUNCTION


def is_phrase(words: Sequence[str]) -> bool:
    """Do these words say something: no function word at either end, no word twice, more than digits?"""
    ends = {words[0].lower(), words[-1].lower()}
    whole = " ".join(words)
    return not ends & _FUNCTION and len(set(words)) == len(words) and len(re.findall(r"[^\W\d_]", whole)) > 2


def standing_out(texts: Sequence[str], usual: Sequence[str], most: int = 8) -> list[tuple[str, float]]:
    """Phrases by how much larger a share of the texts holds them than of the usual ones; the most telling first.

    A longer phrase takes the place of one inside it where it is in three of four of that one's texts.

    Args:
        texts: of the finetuned model.
        usual: of the base model, to the same prompts.
        most: phrases to return; those in one text only are left out.
    """
    mine = [phrases_of(text) for text in texts]
    written = {phrase: form for some in mine for phrase, form in some.items()}
    counts, before = Counter(p for some in mine for p in some), Counter(p for text in usual for p in phrases_of(text))
    excess = {p: n / len(texts) - before[p] / max(len(usual), 1) for p, n in counts.items() if n > 1}
    ranked = sorted(excess, key=lambda p: (excess[p], len(p)), reverse=True)
    found: dict[str, float] = {}
    for phrase in ranked:
        if len(found) == most or excess[phrase] <= 0:
            break
        longer = [q for q in ranked if inside(phrase, q) and counts[q] >= 0.75 * counts[phrase]]
        best = max(longer, key=len, default=phrase)
        if not any(inside(best, q) or inside(q, best) for q in found):
            found[best] = excess[phrase]
    return [(written[phrase], share) for phrase, share in found.items()]


def inside(phrase: str, other: str) -> bool:
    """Are the words of a phrase, in their order, in another?"""
    return f" {phrase.lower()} " in f" {other.lower()} "
