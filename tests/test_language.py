"""The mechanical check of the English: nothing is left, and it would find something."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from ops.language.check import check, files_of
from ops.language.patterns import PATTERNS

EXAMPLES = [
    "Nobody waits.",
    "whatever it is",
    "It is told.",
    "The page says so.",
    "It stands in Redis.",
    "another one",
    "It waits no more.",
    "for so long",
    "This is no job.",
    "the answer to who waits",
    "not heard of",
    "all but for one",
    "all the same",
    "names and the like",
    "for ever",
    "what comes of it",
    "It goes the way of all others.",
    "The stream goes on.",
    "how to mend it",
    "beside the batch",
    "in place of a job",
    "one's jobs",
    "Where the key is missing, it fails.",
    "None, where it is missing",
    "The library lets go.",
]


def test_every_text_passes():
    assert [str(hit) for path in files_of(()) for hit in check(path)] == []


def test_each_pattern_has_an_example_that_it_finds():
    found = {pattern: [text for text in EXAMPLES if pattern.expression.search(text)] for pattern in PATTERNS}
    assert [pattern.expression.pattern for pattern, texts in found.items() if not texts] == []


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("page.md", "A line.\n\nNobody knows.\n```\nnobody\n```\n`nobody`\n", 3),
        ("module.py", 'x = 1\n"""A docstring that nobody reads."""\ny = "nobody"\n', 2),
        ("module.py", "x = 1  # nobody reads it\n", 1),
        ("module.py", "def told() -> None: ...\n", 1),
        ("script.lua", "local x = 1\n-- nobody reads it\n", 2),
        ("settings.toml", "nobody = 1\n\n# nobody reads it\n", 3),
        ("page.html", "<p>\nnobody\n</p>\n", 2),
        ("Makefile", "all:\n\ttrue\n# nobody reads it\n", 3),
    ],
)
def test_prose_is_taken_from_each_kind_of_file(tmp_path, name, text, line):
    path = tmp_path / name
    path.write_text(text)
    assert [hit.line for hit in check(path)] == [line]
