"""to_rust: rewrites a regular expression of ECMA-262, JSON schema's dialect, for Rust's regex crate.

The grammar library reads the crate's dialect. Only what the crate would reject or understand differently is
rewritten: `.` and white space, which match other characters, and the content of brackets. The library itself
handles digits and word characters like ECMA-262. What ECMA-262 does not define (with its flag `u`) is left
unchanged, and so is a pattern that contains flags, such as `(?i)`.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["to_rust"]

_LINE_ENDS: Final = r"\n\r\u{2028}\u{2029}"
_SPACES: Final = (
    rf"\t\v\f {_LINE_ENDS}\u{{a0}}\u{{1680}}\u{{2000}}-\u{{200a}}\u{{202f}}\u{{205f}}\u{{3000}}\u{{feff}}"
)
_SETS: Final = {r"\s": f"[{_SPACES}]", r"\S": f"[^{_SPACES}]", ".": f"[^{_LINE_ENDS}]"}
_ANY: Final = r"[\u{0}-\u{10FFFF}]"
_NOTHING: Final = r"[^\u{0}-\u{10FFFF}]"
# One character or one set of characters, inside or outside of brackets.
_ATOM: Final = re.compile(
    r"\\u(?P<high>[dD][89abAB][0-9a-fA-F]{2})\\u(?P<low>[dD][c-fC-F][0-9a-fA-F]{2})"
    r"|\\c(?P<control>[a-zA-Z])"
    r"|\\(?P<nul>0)(?![0-9])"
    r"|\\[pP]\{[^}]*\}|\\u\{[^}]*\}|\\u[0-9a-fA-F]{4}|\\x[0-9a-fA-F]{2}"
    r"|\\.|.",
    re.DOTALL,
)
_FLAGS: Final = re.compile(r"\(\?[a-zA-Z-]*[a-zA-Z][:)]|\(\?P")
_SET_ESCAPES: Final = ("s", "S", "d", "D", "w", "W", "p", "P")


def to_rust(pattern: str) -> str:
    """Return a pattern that matches the same texts in Rust, as far as Rust can express it."""
    out: list[str] = []
    position = 0
    while position < len(pattern):
        atom = _atom(pattern, position)
        position = atom.end()
        if atom[0] == "[":
            text, position = _brackets(pattern, position)
        elif _FLAGS.match(pattern, atom.start()):
            return pattern
        else:
            text = _SETS.get(atom[0]) or _character(atom)
        out.append(text)
    return "".join(out)


def _brackets(pattern: str, position: int) -> tuple[str, int]:
    """Return the rewritten brackets whose `[` ends at `position`, and the position after their `]`.

    If the `]` is missing, return the rest of the pattern unchanged.
    """
    begun_at = position
    is_negated = pattern.startswith("^", position)
    position += is_negated
    members: list[str] = []
    while not pattern.startswith("]", position):
        if position >= len(pattern):
            return "[" + pattern[begun_at:], position
        first = _atom(pattern, position)
        position = first.end()
        last = _end_of_range(first, pattern, position)
        members.append(_member(first) if last is None else f"{_member(first)}-{_member(last)}")
        position = position if last is None else last.end()
    if not members:
        return _ANY if is_negated else _NOTHING, position + 1
    return f"[{'^' * is_negated}{''.join(members)}]", position + 1


def _end_of_range(first: re.Match[str], pattern: str, position: int) -> re.Match[str] | None:
    if not pattern.startswith("-", position) or position + 1 >= len(pattern) or pattern[position + 1] == "]":
        return None
    last = _atom(pattern, position + 1)
    return None if _is_set(first) or _is_set(last) else last


def _member(atom: re.Match[str]) -> str:
    """Escapes what Rust gives a meaning in brackets: `[` nests, and `&&`, `--` and `~~` combine sets."""
    text = atom[0]
    if text in (r"\s", r"\S"):
        return _SETS[text]
    if text == r"\b":
        return r"\u{8}"
    return f"\\{text}" if text in ("[", "&", "~", "-", "^") else _character(atom)


def _character(atom: re.Match[str]) -> str:
    if atom["high"] is not None:
        return (
            rf"\u{{{0x10000 + (int(atom['high'], 16) - 0xD800) * 0x400 + int(atom['low'], 16) - 0xDC00:x}}}"
        )
    if atom["control"] is not None:
        return rf"\u{{{ord(atom['control']) % 32:x}}}"
    # ECMA-262 allows these needless escapes; in Rust they are word boundaries.
    return {r"\<": "<", r"\>": ">"}.get(atom[0], atom[0]) if atom["nul"] is None else r"\u{0}"


def _is_set(atom: re.Match[str]) -> bool:
    return atom[0].startswith("\\") and atom[0][1:2] in _SET_ESCAPES


def _atom(pattern: str, position: int) -> re.Match[str]:
    atom = _ATOM.match(pattern, position)
    assert atom is not None
    return atom
