"""Words that do not belong in the names of Python code."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from typing import Final

WORDS: Final = {
    "heard": "received",
    "insist": "retry",
    "nobody": "none",
    "patience": "timeout",
    "patient": "waiting",
    "said": "text, reported",
    "shown": "displayed, repr",
    "spelled": "text, token string",
    "told": "reported, sent",
    "who": "the noun: reader, tenant, client",
}
"""Each with what to write instead."""
_PART: Final = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")


def bad_names(source: str) -> Iterator[tuple[int, str, str]]:
    """Yield the line, the name and the advice for each name with such a word in it."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME:
            for part in _PART.findall(token.string):
                if (advice := WORDS.get(part.lower())) is not None:
                    yield token.start[0], token.string, advice
