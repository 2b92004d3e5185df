"""A schema that is accepted is kept exactly; one that can't be is refused before the first token."""

from __future__ import annotations

import decimal
import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from ecma_validator import validator_for
from schema_generator import SchemaGenerator, eager_walk

from pagefleet.engine import EngineConfig, InvalidRequestError, LLMEngine, NullOptions, StructuredOutput
from pagefleet.engine.structured.json_schema import prepare_schema

NUM_SCHEMAS = 150
INT: Any = {"type": "integer"}
OPEN: Any = {"properties": {"c": INT}, "additionalProperties": True}
BOTH: Any = {"a": INT, "b": INT}
ONE_OF: Any = [{"required": ["a"]}, {"required": ["b"]}]


@pytest.fixture(scope="module")
def engine() -> LLMEngine:
    return LLMEngine.from_config(EngineConfig(model="null", backend="null", null=NullOptions(step_time_s=0)))


def allows(engine: LLMEngine, schema: Any, text: str) -> bool:
    grammar = engine.compile_grammar(StructuredOutput(json_schema=schema))
    accepted = all(grammar.accept(byte) is None for byte in text.encode())
    return accepted and bool(grammar.matcher.is_accepting())


def refusal(engine: LLMEngine, schema: Any) -> str:
    with pytest.raises(InvalidRequestError) as refused:
        engine.compile_grammar(StructuredOutput(json_schema=schema))
    assert refused.value.code == "invalid_grammar"
    return refused.value.message


@pytest.fixture
def exact() -> Iterator[None]:
    """Numbers in JSON are decimal."""
    with decimal.localcontext(prec=1000, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN):
        yield


def test_random_texts_under_random_schemas_are_valid(engine: LLMEngine, exact: None):
    faults, num_accepted, num_ended = {}, 0, 0
    for seed in range(NUM_SCHEMAS):
        schema = SchemaGenerator(seed).schema()
        wanted = StructuredOutput(json_schema=schema, wind_down=True)
        try:
            engine.compile_grammar(wanted)
            jsonschema.Draft202012Validator.check_schema({} if "$schema" in str(schema) else schema)
        except (InvalidRequestError, jsonschema.SchemaError):
            continue
        num_accepted += 1
        validator = validator_for(json.loads(json.dumps(schema), parse_float=decimal.Decimal))
        for walk in range(3):
            try:
                text, has_ended = eager_walk(engine.compile_grammar(wanted), walk)
                num_ended += has_ended
                if has_ended:
                    validator.validate(json.loads(text, parse_float=decimal.Decimal))
            except (AssertionError, jsonschema.ValidationError) as error:
                faults[json.dumps(schema)] = str(error)[:300]
            except decimal.InvalidOperation:
                # An exponent that no computer has.
                continue
    assert faults == {}
    assert num_accepted > NUM_SCHEMAS // 3
    # A pattern or a number may keep a text from ending in time.
    assert num_ended > num_accepted * 3 * 0.95


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"const": 2**53 + 1}, "#/const"),
        ({"enum": [1, {"a": [-(2**60) - 1]}]}, "#/enum"),
        ({"properties": {"a": {"type": "integer", "maximum": 2**63 - 1}}}, "#/properties/a/maximum"),
        # The library recurses for ever, which ended the process.
        ({"items": {"type": "integer", "minimum": -(2**63)}}, "#/items/minimum"),
        ({"type": "integer", "const": -1e19}, "#/const"),
        ({"allOf": [{"multipleOf": 65537}, {"multipleOf": 65539}]}, "#/allOf/0/multipleOf"),
        ({"properties": {"a/b": {"multipleOf": 0}}}, "#/properties/a~1b/multipleOf"),
        ({"type": "object", "minProperties": 2}, "#/minProperties"),
        ({"patternProperties": {"^x": INT}, "minProperties": 3, "required": ["x"]}, "#/minProperties"),
        ({"properties": {"a": INT}, "patternProperties": {"^a$": INT}}, "#/patternProperties"),
        ({"properties": {"a": INT, "b": INT}, "patternProperties": {"^[ab]$": INT}}, "#/patternProperties"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, "#"),
        (
            {
                "properties": {
                    "a": {"type": "array", "minItems": 1, "items": {"$ref": "#/properties/a"}},
                }
            },
            "#/properties/a",
        ),
        (
            {"properties": {"a": {"const": "\x01"}, "b": OPEN}},
            "#/properties/a/const",
        ),
        # What the library itself refuses has its place too.
        ({"properties": {"a": {"items": {"uniqueItems": True}}}}, "#/properties/a/items"),
        ({"$defs": {"f": {"type": "objekt"}}, "items": {"$ref": "#/$defs/f"}}, "#/$defs/f"),
        ({"anyOf": [INT, {"pattern": "(?=a)"}]}, "#/anyOf/1"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_is_refused_with_its_place(engine: LLMEngine, schema: Any, place: str):
    message = refusal(engine, schema)
    assert f"at {place}: " in message
    assert len(message) < 400


@pytest.mark.parametrize(
    ("schema", "valid", "others"),
    [
        # A closed object: neither other names, nor its own in other letters.
        ({"properties": {"a": INT}}, ['{"a":1}', "{}"], ['{"b":1}', '{"\\u0061":"x"}']),
        ({"properties": {"a": INT}, "additionalProperties": True}, ['{"b":"x"}'], ['{"\\u0061":"x"}']),
        (
            {"patternProperties": {"^x-": INT}, "additionalProperties": True},
            ['{"y":"a"}', '{"x-1":1}'],
            ['{"x-1":"a"}', '{"\\u0078-1":"a"}'],
        ),
        (
            {"properties": {"a": INT}, "patternProperties": {"^x-": INT}},
            ['{"a":1,"x-1":2}'],
            ['{"a":1,"y":2}'],
        ),
        # What only several schemas together say stays open; what one of them says alone does not.
        (
            {"allOf": [{"properties": {"a": INT}}, {"properties": {"b": INT}}]},
            ['{"a":1,"b":2}', '{"a":1,"c":2}'],
            ['{"a":"x"}'],
        ),
        (
            {"$ref": "#/$defs/a", "properties": {"b": INT}, "$defs": {"a": {"properties": {"a": INT}}}},
            ['{"a":1,"b":2}'],
            ['{"a":"x"}'],
        ),
        (
            {"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"type": "object", "properties": {"a": INT}}}},
            ['{"a":1}'],
            ['{"b":1}'],
        ),
        (
            {"type": "object", "properties": BOTH, "anyOf": ONE_OF},
            ['{"a":1}', '{"b":1}'],
            ["{}", '{"a":1,"c":1}'],
        ),
        (
            {"anyOf": [{"properties": {name: INT}, "required": [name]} for name in ("a", "b")]},
            ['{"a":1}', '{"b":1}'],
            ['{"a":1,"b":2}', '{"b":1,"c":1}'],
        ),
        # A free mapping, and one that asks for names it does not list.
        ({"type": "object"}, ['{"x":[1,{"y":null}]}'], ["1"]),
        ({"properties": {"a": INT}, "required": ["z"]}, ['{"z":"x"}'], ["{}"]),
        ({"properties": {"a": {"properties": {"b": INT}}}}, ['{"a":{"b":1}}'], ['{"a":{"c":1}}']),
        # Since draft 2020-12 additionalItems is nothing.
        ({"prefixItems": [INT], "additionalItems": {"type": "null"}}, ["[1,true]"], ['["a"]']),
        ({"format": "date"}, ['"2024-02-29"', '"2000-02-29"'], ['"2023-02-29"', '"1900-02-29"']),
        ({"format": "date-time", "pattern": "Z$"}, ['"2024-02-29T10:00:59Z"'], ['"2024-01-01T10:00:60Z"']),
        ({"type": "string", "format": "colour"}, ['"red"'], ["1"]),
        ({"type": "integer", "format": "int64"}, ["12"], ["1.5"]),
        # An option of the library's own, and not the author's to set.
        ({"x-guidance": {"lenient": True}, "type": "array", "items": INT}, ["[1, 2]"], ["[ 1 ]"]),
        ({"const": 2**53}, ["9007199254740992"], ["9007199254740993"]),
    ],
)  # fmt: skip
def test_what_comes_is_what_the_schema_says(
    engine: LLMEngine, schema: Any, valid: list[str], others: list[str]
):
    if "x-guidance" not in schema and schema.keys() != {"properties"}:
        assert [text for text in valid if not validator_for(schema).is_valid(json.loads(text))] == []
    assert [text for text in valid if not allows(engine, schema, text)] == []
    assert [text for text in others if allows(engine, schema, text)] == []


def test_the_tests_check_each_format_that_is_enforced():
    """jsonschema has no checker of a format whose package is missing, and then accepts any text."""
    enforced = {"date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid"}
    assert enforced <= validator_for({}).format_checker.checkers.keys()


def test_a_library_option_cannot_make_a_schema_lenient(engine: LLMEngine):
    assert "uniqueItems" in refusal(
        engine, {"x-guidance": {"lenient": True}, "type": "array", "uniqueItems": True}
    )


@pytest.mark.parametrize("source", ['{"a": ', '{"maximum": NaN}', '{"not"' + ':{"a"' * 5000, "[" * 5000])
def test_what_cannot_be_read_is_refused(engine: LLMEngine, source: str):
    assert refusal(engine, source)


def test_a_long_chain_of_references_is_read(engine: LLMEngine):
    links = {f"a{n}": {"$ref": f"#/$defs/a{n + 1}"} for n in range(1500)} | {"a1500": {"type": "null"}}
    assert allows(engine, {"$ref": "#/$defs/a0", "$defs": links}, "null")


def test_names_and_data_are_no_schemas():
    schema = {
        "properties": {
            "pattern": {"const": {"pattern": r"\s"}},
            "format": {"enum": [r"\s", {"format": "x"}]},
        },
        "examples": [{"pattern": r"\s"}],
        "additionalProperties": False,
    }
    assert json.loads(prepare_schema(json.dumps(schema)).text) == schema
