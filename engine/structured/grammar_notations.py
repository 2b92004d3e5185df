"""A grammar in one of the notations that StructuredOutput takes, to the library's matcher."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from pagefleet.engine.structured.ecma_regex import to_rust
from pagefleet.engine.structured.json_schema import PreparedSchema, prepared
from pagefleet.engine.structured.schema_graph import Part, children

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

__all__ = ["compiled", "sentence"]

JSON_OPTIONS: Final = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
"""A model that may write spaces can write spaces for ever. One, where most people have one, is no trap."""
NO_UNICODE_ESCAPES: Final = {"json_allowed_escapes": 'nrbtf\\"'}
_INLINE_SCHEMA: Final = re.compile(r"%json\b")
"""The library's own notation for a schema in a grammar, which nothing here would check."""
MAX_SEARCH_S: Final = 0.3
"""For the place of what the library refuses: a compilation takes a millisecond, of a large schema 100."""


def compiled(vocabulary: LLTokenizer, kind: str, source: str) -> LLMatcher:
    """Raise ValueError, with the reason, for what can't be kept."""
    try:
        if kind == "json_schema":
            return _from_schema(vocabulary, source)
        return _matcher(vocabulary, _NOTATIONS[kind](source))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except IndexError:
        raise ValueError("it ends too early") from None
    except Exception as error:  # noqa: BLE001
        # The library raises Exception itself.
        raise ValueError(sentence(str(error) or type(error).__name__)) from None


def _matcher(vocabulary: LLTokenizer, text: str) -> LLMatcher:
    """Raise ValueError, with the library's reason."""
    from llguidance import LLMatcher, LLParserLimits

    matcher = LLMatcher(vocabulary, text, log_level=0, limits=LLParserLimits(verbose_errors=False))
    # A grammar without any text shows itself at the first mask, which also builds most of the lexer.
    if not matcher.is_error():
        matcher.compute_bitmask()
    if matcher.is_error():
        raise ValueError(sentence(matcher.get_error()))
    return matcher


def _from_schema(vocabulary: LLTokenizer, source: str) -> LLMatcher:
    schema = prepared(source)
    for part in schema.patterns:
        if not _has_other_names(vocabulary, part.schema["patternProperties"], schema.names):
            raise ValueError(
                f"at {part.place}/patternProperties: all names that it matches are in properties; "
                "give their schemas there"
            )
    try:
        return _matcher(vocabulary, _schema_text(schema.text, schema.has_unicode_escapes))
    except ValueError as error:
        place = _place_of(vocabulary, schema, str(error))
        raise ValueError(f"at {place}: {error}" if place else str(error)) from None


def _has_other_names(vocabulary: LLTokenizer, patterns: dict[str, Any], names: list[str]) -> bool:
    """Else the library lets a comma come, and nothing after it."""
    probe = {
        "type": "object",
        "properties": dict.fromkeys(names, False),
        "patternProperties": {pattern: {"type": "null"} for pattern in patterns},
        "additionalProperties": False,
        "minProperties": 1,
    }
    try:
        matcher = _matcher(vocabulary, _schema_text(json.dumps(probe), True))
    except ValueError:
        # Patterns that overlap are refused, and so is the schema.
        return True
    matcher.consume_tokens(vocabulary.tokenize_str("{"))
    matcher.compute_bitmask()
    return not matcher.is_error()


def _place_of(vocabulary: LLTokenizer, schema: PreparedSchema, reason: str) -> str:
    """The innermost schema that the library refuses for this reason by itself; "" for the whole."""
    root = json.loads(schema.text)
    shared = {name: root[name] for name in ("$schema", "$defs", "definitions") if name in root}
    part, give_up_at = Part("#", root), time.monotonic() + MAX_SEARCH_S
    # What a reference leads to says more than the reference.
    inner = sorted(children(part), key=lambda each: not each.place.startswith(("#/$defs/", "#/definitions/")))
    while inner and time.monotonic() < give_up_at:
        candidate = inner.pop(0)
        try:
            text = json.dumps({**shared, "allOf": [candidate.schema]})
            _matcher(vocabulary, _schema_text(text, schema.has_unicode_escapes))
        except ValueError as error:
            if str(error) == reason:
                part, inner = candidate, list(children(candidate))
    return part.place if part.place != "#" else ""


def _schema_text(schema: str, has_unicode_escapes: bool) -> str:
    from llguidance import LLMatcher

    options = JSON_OPTIONS if has_unicode_escapes else {**JSON_OPTIONS, **NO_UNICODE_ESCAPES}
    # The library's options go into a mapping.
    return LLMatcher.grammar_from_json_schema(schema, overrides=options)  # type: ignore[arg-type]


def _from_choice(source: str) -> str:
    from llguidance import LLMatcher

    choices: Sequence[Any] = json.loads(source)
    if not choices or not all(isinstance(choice, str) and choice for choice in choices):
        raise ValueError("it takes texts, at least one, none of them empty")
    return LLMatcher.grammar_from_lark("start: " + " | ".join(map(_quoted, choices)))


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _from_regex(source: str) -> str:
    from llguidance import LLMatcher, regex_to_lark

    # With digits and letters of words as ECMA-262 has them: ASCII.
    return LLMatcher.grammar_from_regex(regex_to_lark(to_rust(source), "dw"))


def _from_grammar(source: str) -> str:
    from llguidance import LLMatcher
    from llguidance.gbnf_to_lark import any_to_lark

    if _INLINE_SCHEMA.search(source):
        raise ValueError("%json is not supported in it; use json_schema")
    return LLMatcher.grammar_from_lark(any_to_lark(source))


_NOTATIONS: Final[dict[str, Callable[[str], str]]] = {
    "json_object": lambda _source: _schema_text('{"type": "object"}', True),
    "regex": _from_regex,
    "choice": _from_choice,
    "grammar": _from_grammar,
}


def sentence(error: str) -> str:
    """The library's message without its drawings of where the fault is."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    if any("NoExtension" in line for line in lines):
        return "no text can satisfy it"
    causes = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    reason = causes[-1] if causes else lines[0] if lines else "no reason given"
    if len(reason) > 300:
        reason = reason[:300] + "..."
    return reason.rstrip(".")
