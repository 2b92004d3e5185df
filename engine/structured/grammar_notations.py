"""compile_matcher: from each notation that StructuredOutput takes to the library's matcher."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from pagefleet.engine.structured.ecma_regex import to_rust
from pagefleet.engine.structured.json_schema import PreparedSchema, prepare_schema
from pagefleet.engine.structured.schema_graph import Part, children

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

__all__ = ["compile_matcher", "error_reason"]

JSON_OPTIONS: Final = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
"""A model that may write any number of spaces can write spaces without end. One space, in its usual place,
cannot trap it."""
NO_UNICODE_ESCAPES: Final = {"json_allowed_escapes": 'nrbtf\\"'}
_INLINE_SCHEMA: Final = re.compile(r"%json\b")
"""The library's notation for a schema in a grammar; json_schema.py would not check it."""
MAX_SEARCH_S: Final = 0.3
"""Limit for finding the place that the library refuses; a compilation takes 1 ms, of a large schema 100."""


def compile_matcher(vocabulary: LLTokenizer, kind: str, source: str) -> LLMatcher:
    """Return the matcher of `source`, which is of the StructuredOutput field `kind`.

    Raises ValueError, with the reason, if the source is malformed or cannot be followed exactly.
    """
    try:
        if kind == "json_schema":
            return _from_schema(vocabulary, source)
        return _matcher(vocabulary, _NOTATIONS[kind](source))
    except RecursionError:
        raise ValueError("it is nested too deeply; flatten it") from None
    except IndexError:
        # The library's converter reads past the end of the text.
        raise ValueError("it ends too early; complete its last string, escape or rule") from None
    except Exception as error:  # noqa: BLE001
        # The library raises bare Exception.
        raise ValueError(error_reason(str(error) or type(error).__name__)) from None


def _matcher(vocabulary: LLTokenizer, text: str) -> LLMatcher:
    """Return the library's matcher. Raise ValueError, with the library's reason, if it has none."""
    from llguidance import LLMatcher, LLParserLimits

    matcher = LLMatcher(vocabulary, text, log_level=0, limits=LLParserLimits(verbose_errors=False))
    # That a grammar matches no text at all shows at the first mask, which also builds most of the lexer.
    if not matcher.is_error():
        matcher.compute_bitmask()
    if matcher.is_error():
        raise ValueError(error_reason(matcher.get_error()))
    return matcher


def _from_schema(vocabulary: LLTokenizer, source: str) -> LLMatcher:
    schema = prepare_schema(source)
    for part in schema.patterns:
        if not _has_other_names(vocabulary, part.schema["patternProperties"], schema.names):
            raise ValueError(
                f"at {part.place}/patternProperties: it matches only names that properties lists; "
                "put their schemas into properties"
            )
    try:
        return _matcher(vocabulary, _schema_text(schema.text, schema.has_unicode_escapes))
    except ValueError as error:
        place = _place_of(vocabulary, schema, str(error))
        raise ValueError(f"at {place}: {error}" if place else str(error)) from None


def _has_other_names(vocabulary: LLTokenizer, patterns: dict[str, Any], names: list[str]) -> bool:
    """Return whether the patterns match a name that is not in `names`.

    If they do not, the library would allow a comma in the object and then no name after it.
    """
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
        # The library refuses overlapping patterns, and will refuse the schema with its own reason.
        return True
    matcher.consume_tokens(vocabulary.tokenize_str("{"))
    matcher.compute_bitmask()
    return not matcher.is_error()


def _place_of(vocabulary: LLTokenizer, schema: PreparedSchema, reason: str) -> str:
    """Return the place of the innermost schema that alone is refused for this reason, "" for the root."""
    root = json.loads(schema.text)
    shared = {name: root[name] for name in ("$schema", "$defs", "definitions") if name in root}
    part, give_up_at = Part("#", root), time.monotonic() + MAX_SEARCH_S
    # Definitions first: the referenced schema is a better place than the reference to it.
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
    # The annotation is str, but the library reads a mapping.
    return LLMatcher.grammar_from_json_schema(schema, overrides=options)  # type: ignore[arg-type]


def _from_choice(source: str) -> str:
    from llguidance import LLMatcher

    choices: Sequence[Any] = json.loads(source)
    if not choices or not all(isinstance(choice, str) and choice for choice in choices):
        raise ValueError("it must be a list of at least one string, without empty strings")
    return LLMatcher.grammar_from_lark("start: " + " | ".join(map(_quoted, choices)))


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _from_regex(source: str) -> str:
    from llguidance import LLMatcher, regex_to_lark

    # "dw": digits and word characters are ASCII, as in ECMA-262.
    return LLMatcher.grammar_from_regex(regex_to_lark(to_rust(source), "dw"))


def _from_grammar(source: str) -> str:
    from llguidance import LLMatcher
    from llguidance.gbnf_to_lark import any_to_lark

    if _INLINE_SCHEMA.search(source):
        raise ValueError("%json is not supported; use structured_outputs.json_schema instead")
    return LLMatcher.grammar_from_lark(any_to_lark(source))


_NOTATIONS: Final[dict[str, Callable[[str], str]]] = {
    "json_object": lambda _source: _schema_text('{"type": "object"}', True),
    "regex": _from_regex,
    "choice": _from_choice,
    "grammar": _from_grammar,
}


def error_reason(error: str) -> str:
    """Return the library's message in one line, without excerpts of the source and without a full stop."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    if any("NoExtension" in line for line in lines):
        return "no text can satisfy it"
    causes = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    reason = causes[-1] if causes else lines[0] if lines else "llguidance gives no reason"
    if len(reason) > 300:
        reason = reason[:300] + "..."
    return reason.rstrip(".")
