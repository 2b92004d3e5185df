"""Structured output: what may follow is all that follows, whatever becomes of the sequence meanwhile."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sampling_rows import SamplingRow, sample

from pagefleet.engine import (
    EngineConfig,
    EngineRequest,
    FinishReason,
    InvalidRequestError,
    LLMEngine,
    NullOptions,
    SamplingParams,
    StructuredOutput,
)
from pagefleet.engine.execution.executor import LoadedModel
from pagefleet.engine.requests.stop_checker import StopChecker
from pagefleet.engine.sampling.sampling_batch import GrammarMasks
from pagefleet.engine.structured.grammar import GrammarCompiler
from pagefleet.engine.text.hf_tokenizer import HFTokenizer
from pagefleet.engine.text.tokenizer import ByteTokenizer

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 30},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "likes": {
            "type": "array",
            "items": {"enum": ["tea", "coffee", "日本茶"]},
            "minItems": 2,
            "maxItems": 4,
        },
    },
    "required": ["name", "age", "likes"],
    "additionalProperties": False,
}
EOS = ByteTokenizer.EOS_TOKEN_ID


def make_engine(**fields: Any) -> LLMEngine:
    options = {"null": NullOptions(step_time_s=0), "block_size": 4, "num_blocks": 100} | fields
    return LLMEngine.from_config(EngineConfig(model="null", backend="null", **options))


class Text:
    """A request's outputs, joined."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.text = ""
        self.finish_reason: FinishReason | None = None
        self.stop_reason: str | int | None = None


def run(engine: LLMEngine, *requests: EngineRequest) -> dict[str, Text]:
    texts = {request.request_id: Text() for request in requests}
    for request in requests:
        engine.add_request(request)
    while engine.has_unfinished_requests:
        for output in engine.step():
            text = texts[output.request_id]
            text.token_ids += output.token_ids
            text.text += output.text
            text.finish_reason, text.stop_reason = output.finish_reason, output.stop_reason
    return texts


def generate(wanted: StructuredOutput, engine: LLMEngine | None = None, **sampling: Any) -> Text:
    engine = engine or make_engine()
    grammar = engine.compile_grammar(wanted)
    params = SamplingParams(**({"max_tokens": 200, "seed": 1} | sampling))
    return run(engine, EngineRequest("a", [1, 2, 3], params, grammar=grammar))["a"]


class TestKinds:
    """On the null engine, whose tokens are as random as they can be."""

    @pytest.mark.parametrize("seed", range(8))
    def test_a_choice_is_one_of_them(self, seed: int):
        texts = ["yes", "no", "no way", 'with "quotes"', "ünï\ncode"]
        text = generate(StructuredOutput(choice=texts), seed=seed)
        assert text.text in texts
        assert (text.finish_reason, text.stop_reason) == (FinishReason.STOP, None)

    @pytest.mark.parametrize(
        ("regex", "inside", "outside"),
        [(r"\d", "09", "a\u0663\uff11"), (r"\w", "aZ0_", "\xe9\u0444"), (r"[\d-]", "9-", "\u0663"),
         (r"\D", "a\xe9", "0"), (r"\s", " \ufeff", "\x85\x1c"), (r".", "a\x85", "\n\u2028"),
         (r"a/b", ["a/b"], ["a"]), (r"a\/b", ["a/b"], ["ab"])],
    )  # fmt: skip
    def test_a_regex_means_what_a_pattern_does(self, regex: str, inside: list[str], outside: list[str]):
        engine = make_engine()

        def allows(text: str) -> bool:
            grammar = engine.compile_grammar(StructuredOutput(regex=regex))
            accepted = all(grammar.accept(byte) is None for byte in text.encode())
            return accepted and bool(grammar.matcher.is_accepting())

        assert [text for text in inside if not allows(text)] == []
        assert [text for text in outside if allows(text)] == []

    @pytest.mark.parametrize("seed", range(8))
    def test_a_regex_matches_the_whole_text(self, seed: int):
        regex = r"[a-c]{2}-[0-9]+(,[0-9]{3})?!"
        text = generate(StructuredOutput(regex=regex), seed=seed)
        assert re.fullmatch(regex, text.text)
        assert text.finish_reason is FinishReason.STOP

    @pytest.mark.parametrize(
        "grammar",
        [
            'start: "<" item+ ">"\nitem: "a" | "(" item ")"',
            'root ::= "<" item+ ">"\nitem ::= "a" | "(" item ")"',
        ],
        ids=["lark", "ebnf"],
    )
    def test_a_grammar_may_nest(self, grammar: str):
        texts = [generate(StructuredOutput(grammar=grammar), seed=seed) for seed in range(12)]
        done = [text.text for text in texts if text.finish_reason is FinishReason.STOP]
        assert len(done) > 6
        assert any("(" in text for text in done)
        for text in done:
            assert re.fullmatch(r"<[a()]+>", text)
            assert text.count("(") == text.count(")")

    def test_json_parses_and_has_no_white_space_to_get_lost_in(self):
        for seed in range(8):
            text = generate(StructuredOutput(json_schema=PERSON), seed=seed)
            assert set(json.loads(text.text)) == {"name", "age", "likes"}
            assert not re.search(
                r"\n|\t|  |[{\[] | [}\]]", re.sub(r'"name": ?"(\\.|[^"\\])*"', "", text.text)
            )

    def test_the_schema_may_come_as_text(self):
        as_text = generate(StructuredOutput(json_schema=json.dumps(PERSON)))
        assert as_text.text == generate(StructuredOutput(json_schema=PERSON)).text

    def test_a_json_object_winds_down_to_its_end(self):
        wanted = StructuredOutput(json_object=True, wind_down=True)
        texts = [generate(wanted, seed=seed, max_tokens=80) for seed in range(8)]
        assert all(isinstance(json.loads(text.text), dict) for text in texts)
        assert {(text.finish_reason, text.stop_reason) for text in texts} >= {
            (FinishReason.STOP, "wind_down")
        }

    def test_without_it_a_text_too_long_is_cut_off_and_says_so(self):
        many = {"type": "array", "items": {"type": "integer"}, "minItems": 100}
        text = generate(StructuredOutput(json_schema=many), max_tokens=80)
        assert text.finish_reason is FinishReason.LENGTH
        with pytest.raises(ValueError, match=r"Expecting|Unterminated|Invalid"):
            json.loads(text.text)


class TestRefusals:
    @pytest.mark.parametrize(
        ("wanted", "reason"),
        [
            ({"json_schema": {"type": "objekt"}}, "Invalid type: objekt"),
            ({"json_schema": {"type": "integer", "minimum": 5, "maximum": 3}}, "minimum (5) is greater than"),
            (
                {"json_schema": {"type": "object", "required": ["a"], "properties": {"a": False}}},
                "property 'a' is unsatisfiable",
            ),
            ({"json_schema": False}, "Unsatisfiable schema"),
            ({"json_schema": {"$ref": "#"}}, "it requires itself"),
            ({"json_schema": {"$ref": "#/nowhere"}}, "Pointer '/nowhere' does not exist"),
            ({"json_schema": {"$ref": "https://example.org/a.json"}}, "is not present"),
            ({"json_schema": {"type": "array", "uniqueItems": True}}, 'Unimplemented keys: ["uniqueItems"]'),
            ({"json_schema": "{"}, "Expecting"),
            ({"regex": "(a"}, "unclosed group"),
            ({"regex": "(?=a)b"}, "look-around"),
            ({"regex": "(" * 5000 + "a" + ")" * 5000}, "nest"),
            ({"grammar": "start: nowhere"}, "nowhere"),
            ({"grammar": "just words"}, "Expected"),
            ({"grammar": "root ::= nowhere"}, "Rule 'nowhere' not found"),
            ({"grammar": 'main ::= "a"'}, "No 'root' rule found"),
            ({"grammar": "root ::= a A\na ::= [b] root\nA ::= [c] root"}, "already exists"),
            ({"grammar": 'root ::= "a\\'}, "it ends too early"),
            ({"grammar": 'root ::= "\\z"'}, "Invalid escape sequence"),
            ({"grammar": 'start: %json {"minimum": -9223372036854775808}'}, "%json is not supported"),
            ({"grammar": ""}, "No 'root' rule found"),
            ({"regex": "a**{99999999999}"}, "in"),
            ({"grammar": "start: " + "(" * 8000 + '"a"' + ")" * 8000}, "too deeply nested"),
            ({"choice": []}, "at least one"),
            ({"choice": ["a", 1]}, "list of at least one string"),
        ],
        ids=lambda value: str(value)[:40],
    )
    def test_what_cannot_be_kept_is_refused_in_one_sentence(self, wanted: dict[str, Any], reason: str):
        with pytest.raises(InvalidRequestError) as refusal:
            make_engine().compile_grammar(StructuredOutput(**wanted))
        assert reason in refusal.value.message
        assert (refusal.value.code, refusal.value.param) == ("invalid_grammar", "structured_outputs")
        assert "\n" not in refusal.value.message
        assert refusal.value.message.endswith(".")
        assert len(refusal.value.message) < 400

    def test_a_schema_deeper_than_python_goes_is_refused(self):
        schema: dict[str, Any] = {}
        for _ in range(10_000):
            schema = {"items": schema}
        with pytest.raises(InvalidRequestError, match="not JSON"):
            make_engine().compile_grammar(StructuredOutput(json_schema=schema))

    def test_what_the_library_recurses_into_does_not_end_the_process(self):
        """In a thread's usual 8 MiB each of these is a segmentation fault."""
        links = {f"a{n}": {"$ref": f"#/$defs/a{n + 1}"} for n in range(1800)} | {"a1800": {"type": "null"}}
        assert generate(StructuredOutput(json_schema={"$ref": "#/$defs/a0", "$defs": links})).text == "null"
        rules = "\n".join(f"r{n}: r{n + 1}" for n in range(1000))
        assert generate(StructuredOutput(grammar=f'start: r0\n{rules}\nr1000: "x"')).text == "x"

    @pytest.mark.parametrize(
        ("wanted", "most"),
        [
            ({"grammar": 'root ::= "' + "x" * 20_000 + '"'}, "16,384"),
            ({"regex": "x" * 70_000}, "65,536"),
            ({"json_schema": {"enum": ["x" * 70_000]}}, "65,536"),
        ],
    )
    def test_what_would_take_long_is_refused(self, wanted: dict[str, Any], most: str):
        with pytest.raises(InvalidRequestError, match=f"characters; at most {most} are allowed"):
            make_engine().compile_grammar(StructuredOutput(**wanted))

    @pytest.mark.parametrize(
        "fields", [{}, {"regex": "a", "choice": ["a"]}, {"regex": "a", "wind_down": True}]
    )
    def test_exactly_one_kind_is_asked_for(self, fields: dict[str, Any]):
        with pytest.raises(InvalidRequestError) as refusal:
            StructuredOutput(**fields)
        assert refusal.value.code == "invalid_value"

    def test_a_log_that_does_not_fit_ends_the_sequence_alone(self):
        engine = make_engine()
        grammar = engine.compile_grammar(StructuredOutput(choice=["yes"]))
        params = SamplingParams(max_tokens=8)
        misfit = EngineRequest("a", [1], params, logs=[list(b"no")], grammar=grammar)
        texts = run(engine, misfit, EngineRequest("b", [1], params, grammar=grammar))
        assert texts["a"].finish_reason is FinishReason.ERROR
        assert "does not allow the token" in str(texts["a"].stop_reason)
        assert texts["b"].text == "yes"


class TestEnds:
    def test_a_finished_grammar_needs_no_end_of_sequence_token(self):
        text = generate(StructuredOutput(choice=["done"]))
        assert bytes(text.token_ids) == b"done"
        assert (text.finish_reason, text.stop_reason) == (FinishReason.STOP, None)

    def test_the_end_is_allowed_where_the_grammar_may_end_and_nowhere_else(self):
        ends = set()
        for seed in range(40):
            text = generate(StructuredOutput(regex="ab?c?"), seed=seed)
            assert text.finish_reason is FinishReason.STOP
            assert EOS not in text.token_ids[:1]
            ends.add((text.text, text.token_ids[-1] == EOS))
        # "a" can go on and must be ended by a token; "abc" can't.
        assert ("a", True) in ends
        assert ("abc", False) in ends
        assert ("abc", True) not in ends

    @pytest.mark.parametrize("held", [{"ignore_eos": True}, {"min_tokens": 100}])
    def test_a_text_that_is_to_go_on_goes_on_as_long_as_it_can(self, held: dict[str, Any]):
        for seed in range(12):
            assert generate(StructuredOutput(regex="ab?c?"), seed=seed, **held).text in ("abc", "ac")

    def test_where_only_the_end_may_follow_min_tokens_does_not_forbid_it(self):
        """The mask withholds the end as long as it can; the sampler's own rule would leave nothing."""
        checker = StopChecker((EOS,), 100, 300)
        params = SamplingParams(min_tokens=5, stop_token_ids=[7])
        assert checker.end_token_ids(params) == [7, EOS]
        assert checker.end_token_ids(params, has_grammar=True) == [7]

    def test_a_stop_string_ends_it_too(self):
        text = generate(StructuredOutput(choice=["one, two"]), stop=(",",))
        assert (text.text, text.finish_reason, text.stop_reason) == ("one", FinishReason.STOP, ",")

    def test_compiling_goes_on_beside_the_steps(self):
        """No lock of the engine is held, and none of its state is touched."""
        engine = make_engine()
        engine.prepare_grammars()
        made: list[Any] = []

        def compile_many() -> None:
            wanted = (StructuredOutput(regex=f"a{{{size}}}b") for size in range(60))
            made.extend(map(engine.compile_grammar, wanted))

        threads = [threading.Thread(target=compile_many) for _ in range(3)]
        for thread in threads:
            thread.start()
        plain = run(engine, EngineRequest("a", [1], SamplingParams(max_tokens=200, seed=1)))["a"]
        for thread in threads:
            thread.join()
        assert len(plain.token_ids) == 200
        assert len(made) == 180
        # Each has a state of its own, though the compiled form is shared.
        heads = [grammar for grammar in made if ord("b") in grammar.allowed_token_ids(0)]
        assert len(heads) == 3
        assert [grammar.accept(ord("b")) for grammar in heads] == [None] * 3


@pytest.fixture(scope="module")
def smollm2(smollm2_float64: LoadedModel, engine_with: Callable[..., LLMEngine]) -> Callable[..., LLMEngine]:
    return lambda **options: engine_with(smollm2_float64, **options)


def person(
    engine: LLMEngine, name: str, *, log: tuple[int, ...] = (), temperature: float = 1.2
) -> EngineRequest:
    prompt = engine.tokenizer.encode(f"A person called {name}, as JSON: ")
    params = SamplingParams(max_tokens=48, temperature=temperature, seed=5)
    grammar = engine.compile_grammar(StructuredOutput(json_schema=PERSON, wind_down=True))
    return EngineRequest(name, prompt, params, logs=[log], grammar=grammar)


@pytest.mark.slow
class TestRealModel:
    """SmolLM2 in float64: the same tokens to the last, whatever happens on the way. test_mixtures.py does the
    same with a tiny model."""

    def test_it_goes_on_from_the_log_at_any_token(self, smollm2: Callable[..., LLMEngine]):
        engine = smollm2()
        whole = run(engine, person(engine, "Ann"))["Ann"]
        assert set(json.loads(whole.text)) == {"name", "age", "likes"}
        cuts = [1, len(whole.token_ids) // 3, len(whole.token_ids) * 2 // 3, len(whole.token_ids) - 1]
        for cut in cuts:
            other = smollm2()
            rest = run(other, person(other, "Ann", log=tuple(whole.token_ids[:cut])))["Ann"]
            assert rest.token_ids == whole.token_ids[cut:]
            assert (rest.finish_reason, rest.stop_reason) == (whole.finish_reason, whole.stop_reason)
        # A log that is whole ends at once.
        ended = run(engine, person(engine, "Ann", log=tuple(whole.token_ids)))["Ann"]
        assert (ended.token_ids, ended.finish_reason) == ([], FinishReason.STOP)

    def test_a_preempted_one_goes_on_where_it_was(self, smollm2: Callable[..., LLMEngine]):
        names = ["Ann", "Bob", "Cem"]
        calm = {}
        for name in names:
            engine = smollm2()
            calm |= run(engine, person(engine, name))
        crowd = smollm2(num_blocks=5, enable_prefix_caching=False)
        texts = run(crowd, *(person(crowd, name) for name in names))
        assert crowd.stats().num_preemptions > 0
        assert {name: text.token_ids for name, text in texts.items()} == {
            name: text.token_ids for name, text in calm.items()
        }


def test_a_regex_that_exhausts_the_library_fails_its_own_text_and_no_other(smollm2_folder: Path):
    """And is not taken for a text that is complete, though the library then allows the end."""
    tokenizer, end = HFTokenizer(smollm2_folder), 2
    compiler, lengths = GrammarCompiler(tokenizer, 49_152, (end,)), []
    for _ in range(2):
        grammar, num_accepted = compiler.compile(StructuredOutput(regex="(.*a.{200}){5}")), 0
        (letter,) = tokenizer.encode("a")
        while letter in grammar.allowed_token_ids(num_accepted):
            assert grammar.accept(letter) is None
            num_accepted += 1
        assert list(grammar.allowed_token_ids(num_accepted)) == [end]
        assert grammar.error is not None
        assert "too many expressions" in grammar.error
        assert grammar.accept(end) == grammar.error
        lengths.append(num_accepted)
    assert lengths[0] == lengths[1] > 50


def test_a_mask_limits_its_row_before_anything_else_does():
    logits = torch.arange(8 * 70, dtype=torch.float32).view(8, 70)
    params = [SamplingParams(temperature=0.0), SamplingParams(top_k=3)] * 4
    rows = [SamplingRow(each, 1, 0, position) for position, each in enumerate(params)]
    masks = GrammarMasks(np.arange(4), np.tile(np.array([1 << 5, 0, 1 << 2], dtype=np.int32), (4, 1)))
    limited, free = sample(logits, rows, masks), sample(logits, rows)
    assert limited[0] == limited[2] == 66
    assert set(limited[:4]) <= {5, 66}
    assert limited[4:] == free[4:]
