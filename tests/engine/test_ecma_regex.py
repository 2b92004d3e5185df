"""Patterns of a schema mean what ECMA-262 says, whatever the library's own regular expressions are."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ecma_validator import matches, validator_for

from pagefleet.engine import EngineConfig, LLMEngine, NullOptions, StructuredOutput
from pagefleet.engine.structured.ecma_regex import to_rust
from pagefleet.engine.structured.json_schema import prepare_schema

SPACES = "\t\n\v\f\r \xa0\u1680\u2000\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"
# White space for Python, for Unicode, or to the eye.
NO_SPACES = "\x1c\x1d\x1e\x1f\x85\u180e\u200b\u2060a"
LINE_ENDS = "\n\r\u2028\u2029"

FACTS = [
    (r"^\s$", SPACES, NO_SPACES),
    (r"^\S$", NO_SPACES, SPACES),
    (r"^[\s]$", SPACES, NO_SPACES),
    (r"^[^\s]$", NO_SPACES, SPACES),
    (r"^[\S]$", NO_SPACES, SPACES),
    (r"^[^\S\n]$", SPACES.replace("\n", ""), NO_SPACES + "\n"),
    (r"^[^\sx]$", NO_SPACES, SPACES + "x"),
    (r"^.$", "a\x0b\x0c\x85\x1c\U0001f600", LINE_ENDS),
    (r"^[.]$", ".", "a" + LINE_ENDS),
    (r"^\.$", ".", "a"),
    (r"^\d$", "09", "a\u0663\uff11"),
    (r"^[^\d]$", "a\u0663", "0"),
    (r"^\D$", "a\u0663", "0"),
    (r"^\w$", "aZ0_", "-\xe9\u0444\u017f"),
    (r"^\W$", "-\xe9\u0444", "aZ0_"),
    (r"^[\w-]$", "a-", "\xe9."),
    (r"^[ --]$", " +-", "./"),
    (r"^[*--/]$", "*+-/", ".a"),
    (r"^[a~~b]$", "a~b", "c"),
    (r"^[a-c&&[^b]]$", ["b]", "^]"], ["b", "d]"]),
    (r"^[[:alp]]$", ["[]", ":]", "p]"], ["a", "[", "b]"]),
    (r"^[^[]$", "a]", "["),
    (r"^[\[\]]$", "[]", "\\a"),
    (r"^[a^]$", "a^", "b"),
    (r"^[-a]$", "-a", "b"),
    (r"^[a-]$", "a-", "b"),
    (r"^[^]$", "a\n\u2028", [""]),
    (r"^\cJ$", "\n", "Jc"),
    (r"^[\cA-\cZ]$", "\x01\x1a", "A\x1b"),
    (r"^\0$", "\0", "0"),
    (r"^[\b]$", "\b", "b"),
    (r"^\ud83d\ude00$", "\U0001f600", "\U0001f601"),
    (r"^[\ud83d\ude00-\ud83d\ude02]$", "\U0001f601", "\U0001f603"),
    (r"^\u{1f600}$", "\U0001f600", "u"),
    (r"^\\s$", ["\\s"], " s"),
    (r"^\\\s$", ["\\ ", "\\\ufeff"], ["\\s", "\\\x85"]),
    (r"^\p{L}$", "a\xe9\u0444", "0 "),
    (r"a$", "a", ["a\n", "ab"]),
    (r"\s", ["a b", "a\ufeffb"], ["a\x85b", ""]),
    (r"^(a|\s)+$", ["a \ufeffa"], ["a\x85"]),
    (r"^\/\-\<$", ["/-<"], ["/-"]),
]


@pytest.fixture(scope="module")
def engine() -> LLMEngine:
    return LLMEngine.from_config(EngineConfig(model="null", backend="null", null=NullOptions(step_time_s=0)))


def allows(engine: LLMEngine, schema: Any, document: Any) -> bool:
    grammar = engine.compile_grammar(StructuredOutput(json_schema=schema))
    text = json.dumps(document, ensure_ascii=False).encode()
    accepted = all(grammar.accept(byte) is None for byte in text)
    return accepted and bool(grammar.matcher.is_accepting())


@pytest.mark.parametrize(("pattern", "inside", "outside"), FACTS, ids=[fact[0] for fact in FACTS])
def test_a_pattern_matches_what_ecma_262_says(
    engine: LLMEngine, pattern: str, inside: str | list[str], outside: str | list[str]
):
    schema = {"type": "string", "pattern": pattern}
    assert [text for text in inside if not allows(engine, schema, text)] == []
    assert [text for text in outside if allows(engine, schema, text)] == []
    # And the table itself is right.
    assert [text for text in inside if not matches(pattern, text)] == []
    assert [text for text in outside if matches(pattern, text)] == []


@pytest.mark.parametrize("pattern", [r"(?i)^a\sb$", r"(?s).", r"(?P<a>.)"])
def test_what_is_not_ecmas_stays_as_it_is(pattern: str):
    assert to_rust(pattern) == pattern


@pytest.mark.parametrize("pattern", ["[a", "[", "\\", "[\\", "a\\", "[^", "[a-", "(?", r"[\u{", "x{,3}", ""])
def test_a_broken_pattern_is_left_to_the_library(pattern: str):
    assert to_rust(pattern) == pattern


class TestSchemas:
    def test_patterns_are_found_wherever_schemas_are(self):
        pattern = {"pattern": r"\s"}
        schema = {
            "$defs": {"pattern": pattern},
            "properties": {"const": pattern, "b": {"items": [pattern]}},
            "anyOf": [{"patternProperties": {r"^\s": pattern}}],
            "elsewhere": {"schemas": pattern},
        }
        assert r"\\s" not in prepare_schema(json.dumps(schema)).text

    def test_a_keyword_may_be_written_in_escapes(self):
        assert r"\\s" not in prepare_schema(r'{"\u0070attern": "\\s"}').text

    def test_two_names_that_become_one_are_both_kept(self):
        schema = {"patternProperties": {r"^\cJ": {"minLength": 1}, r"^\cj": {"maxLength": 2}}}
        rewritten = json.loads(prepare_schema(json.dumps(schema)).text)["patternProperties"]
        assert [list(each) for each in rewritten.values()] == [["minLength"], ["maxLength"]]

    @pytest.mark.parametrize("name", ["a\ufeffb", "a\x85b", "a\x1cb", "ab"])
    def test_names_of_properties_are_ecmas_too(self, engine: LLMEngine, name: str):
        schema = {
            "type": "object",
            "patternProperties": {r"^[^\s]+$": {"type": "integer"}},
            "additionalProperties": False,
        }
        assert allows(engine, schema, {name: 1}) is validator_for(schema).is_valid({name: 1})
