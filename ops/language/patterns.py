"""The patterns that the check rejects, each with its advice."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Pattern:
    expression: re.Pattern[str]
    advice: str


def _pattern(expression: str, advice: str) -> Pattern:
    return Pattern(re.compile(expression), advice)


PATTERNS: Final = (
    _pattern(
        r"\b(?:[Nn]obody|[Ww]hoever|[Aa]nybody|[Ss]omebody)\b",
        'name the reader, client or worker, or use "not"',
    ),
    _pattern(r"\b[Ww]hatever\b", '"any", or name the thing'),
    _pattern(r"\b[Tt](?:old|ells)\b", '"reports", "returns", "sends", "distinguishes"'),
    _pattern(r"\b[Ss]a(?:ys|id)\b", '"reports", "lists", "returns", "states"'),
    _pattern(r"\b[Ss]tands?\b(?! for\b|-)", '"is in", "has", "contains", "is written"'),
    _pattern(r"\b[Aa]nother one\b", '"another" and the noun, or "a different"'),
    _pattern(r"\bno more\b(?! than\b)", '"no longer", "not ... again"'),
    _pattern(r"\b[Ss]o (?:long|many|often)\b(?! as\b)", '"this long", "for N seconds", or name the number'),
    _pattern(
        r"(?<![Tt]here )\b(?:is|are|was|were) no\b(?! (?:longer|larger|greater|later|smaller|more|less)\b)",
        '"is not a"',
    ),
    _pattern(
        r"\b(?:of|to|for|from|with|by|than|as) who\b", 'name the person or program: "the client that ..."'
    ),
    _pattern(r"\b[Hh]ear(?:s|d)?\b", '"receives", "listens", "reads"'),
    _pattern(r"\bbut for\b", '"except"'),
    _pattern(r"\ball the same\b", '"anyway", "still"'),
    _pattern(r"\band the like\b", "name the others, or leave it out"),
    _pattern(r"\bfor ever\b", '"forever", "without end"'),
    _pattern(r"\bcomes? of (?:it|this|that)\b", '"results from"'),
    _pattern(r"\b[Gg]o(?:es)? the way\b", '"is handled like"'),
    _pattern(r"\b(?:[Gg]o(?:es)?|[Ww]ent) on\b", '"continue"'),
    _pattern(r"\b[Mm]end(?:s|ed|ing)?\b", '"fix"'),
    _pattern(r"\b[Bb]eside\b", '"next to", "together with", "in parallel with", "in addition to"'),
    _pattern(r"\bin place of\b", '"instead of"'),
    _pattern(r"\bone's\b", '"its", "a client\'s"'),
    _pattern(r"\bWhere (?:a|an|the|it|no|there|they|this|that|one)\b(?![^.]*\?)", '"If"'),
    _pattern(r"(?:, |\b)where (?:it|they|there|no)\b", '"if"'),
    _pattern(r"\b[Ll]et(?:s)? go\b", '"release"'),
)
