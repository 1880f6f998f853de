"""What is shown to people: strangers' text made harmless, which may hold terminal escapes and Unicode tricks; ratios.

Escapes that move a cursor, text that runs from right to left, letters of no width: each is shown as its escape.
"""

import json
import math
from typing import Any

from rich.markup import escape


def printable(text: object) -> str:
    r"""The text in one line, with every character that doesn't print as its escape, such as `\x1b` or `\u202e`."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


def shown(text: object) -> str:
    """The text for a rich console: printable, and its square brackets no markup."""
    return escape(printable(text))


def times(nats: float) -> str:
    """A log-ratio as people read one: "0.4 times", "12 times", and from a thousand on by its power of ten."""
    factor = math.exp(min(nats, 7.0))
    if factor < 1000:
        return f"{factor:.2g} times" if factor < 10 else f"{factor:.0f} times"
    return f"10^{nats / math.log(10):.0f} times"


def json_line(value: Any) -> str:
    """A value as one line of JSON; characters that don't print are JSON's own escapes, others are themselves."""
    line = json.dumps(value, ensure_ascii=False)
    # Outside of strings JSON is plain ASCII, so that such a character is always in a string.
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in line)
