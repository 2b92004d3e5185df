"""What a person reads, taken out of each kind of file: documents, docstrings, comments, messages, pages."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

Line = tuple[int, str]
"""The line's number in its file, from 1, and its text."""

_CODE: Final = re.compile(r"`[^`]*`")
_MIN_SPACES: Final = 2
"""A string with fewer blanks is a name or a value, not a sentence."""


def prose_of(path: Path) -> Iterator[Line]:
    source = path.read_text()
    for number, text in READERS[path.suffix](source):
        yield number, _CODE.sub("``", text)


def _markdown(source: str) -> Iterator[Line]:
    in_code = False
    for number, line in enumerate(source.splitlines(), 1):
        if line.lstrip().startswith("```"):
            in_code = not in_code
        elif not in_code:
            yield number, line


def _python(source: str) -> Iterator[Line]:
    strings = {tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
        elif token.type in strings and token.string.count(" ") >= _MIN_SPACES:
            for offset, line in enumerate(token.string.splitlines()):
                yield token.start[0] + offset, line


def _comments(mark: str) -> Callable[[str], Iterator[Line]]:
    """Of a language whose comments begin with ``mark`` and end with the line."""

    def read(source: str) -> Iterator[Line]:
        for number, line in enumerate(source.splitlines(), 1):
            _, found, comment = line.partition(mark)
            if found:
                yield number, comment

    return read


def _whole(source: str) -> Iterator[Line]:
    """Each line: a page's texts are anywhere in it."""
    return iter(enumerate(source.splitlines(), 1))


READERS: Final[Mapping[str, Callable[[str], Iterator[Line]]]] = {
    "": _comments("#"),
    ".html": _whole,
    ".js": _whole,
    ".lua": _comments("--"),
    ".md": _markdown,
    ".py": _python,
    ".sh": _comments("#"),
    ".toml": _comments("#"),
    ".yaml": _whole,
    ".yml": _whole,
}
"""By suffix; a file without one is a Makefile, a Dockerfile or a script."""
