"""The wire contract: what a request may say, and what one version may read of another's."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pagefleet.api.client.job_options import JobOptions
from pagefleet.api.contract import messages
from pagefleet.api.contract.errors import ContextTooLong, InvalidRequest, ProtocolError, UnknownParameter
from pagefleet.api.contract.messages import (
    AcceptedEvent,
    ChoiceResult,
    EndedEvent,
    ErrorInfo,
    Fingerprint,
    GenerateRequest,
    JobResult,
    JobState,
    LogEntry,
    ModelCard,
    SamplingParams,
    StoredModel,
    WorkerStatus,
    parse_event,
    split_events,
)
from pagefleet.api.contract.plain_entry import parse_plain_entry, plain_entry_json
from pagefleet.api.contract.requests import build_request
from pagefleet.engine import InvalidRequestError
from pagefleet.engine import SamplingParams as EngineSamplingParams

INFINITY, NAN = float("inf"), float("nan")


def build(**fields):
    given = {"model": "m", "prompt": "Hello", **fields}
    return build_request({name: value for name, value in given.items() if value is not None})


class TestRequests:
    def test_flat_fields_become_a_request(self):
        request = build(max_tokens=3, lane="batch", stop="\n", temperature=0)
        assert (request.model, request.prompt, request.lane, request.priority) == ("m", "Hello", "batch", 5)
        assert request.sampling == SamplingParams(max_tokens=3, stop=["\n"], temperature=0.0)

    @pytest.mark.parametrize(
        ("param", "value"),
        [
            ("max_tokens", 0),
            ("max_tokens", 1_000_001),
            ("max_tokens", 1.5),
            ("max_tokens", "8"),
            ("max_tokens", True),
            ("min_tokens", -1),
            ("min_tokens", 257),
            ("temperature", -0.1),
            ("temperature", 100.1),
            ("temperature", NAN),
            ("temperature", INFINITY),
            ("temperature", "hot"),
            ("temperature", True),
            ("top_k", -1),
            ("top_k", 2**31),
            ("top_k", 1.0),
            ("top_p", 0),
            ("top_p", 1.01),
            ("top_p", NAN),
            ("min_p", -0.01),
            ("min_p", 1.01),
            ("min_p", NAN),
            ("seed", -1),
            ("seed", 2**64),
            ("seed", 1.0),
            ("stop", 5),
            ("stop_token_ids", "5"),
            ("include_stop_str_in_output", 1),
            ("ignore_eos", "yes"),
            ("skip_special_tokens", "no"),
            ("model", ""),
            ("model", "m" * 513),
            ("prompt", ""),
            ("prompt", 5),
            ("prompt", b"Hello"),
            ("prompt", "\ud800"),
            ("lane", "fast"),
            ("priority", -1),
            ("priority", 10),
            ("priority", 5.0),
            ("deadline_s", 0),
            ("deadline_s", -1),
            ("deadline_s", NAN),
            ("deadline_s", INFINITY),
            ("deadline_s", "soon"),
        ],
    )
    def test_a_bad_value_is_one_sentence_that_names_its_parameter(self, param, value):
        with pytest.raises(InvalidRequest) as raised:
            build(**{param: value})
        self.check_sentence(raised.value, param)

    @pytest.mark.parametrize(
        ("param", "fields"),
        [
            ("stop.0", {"stop": [""]}),
            ("stop.1", {"stop": ["a", 5]}),
            ("stop", {"stop": ["x"] * 65}),
            ("stop_token_ids.0", {"stop_token_ids": [-1]}),
            ("prompt_token_ids", {"prompt": None, "prompt_token_ids": []}),
            ("prompt_token_ids", {"prompt": None, "prompt_token_ids": "12"}),
            ("prompt_token_ids.1", {"prompt": None, "prompt_token_ids": [1, -2]}),
            ("prompt_token_ids.0", {"prompt": None, "prompt_token_ids": [True]}),
            ("messages", {"prompt": None, "messages": []}),
            ("messages", {"prompt": None, "messages": "Hello"}),
            ("messages.0", {"prompt": None, "messages": ["Hello"]}),
            ("messages.0.content", {"prompt": None, "messages": [{"role": "user"}]}),
            ("messages.0.role", {"prompt": None, "messages": [{"role": "", "content": "x"}]}),
            ("messages.0.tone", {"prompt": None, "messages": [{"role": "u", "content": "x", "tone": "y"}]}),
        ],
    )
    def test_a_bad_value_inside_a_field_is_named_with_its_place(self, param, fields):
        with pytest.raises(InvalidRequest) as raised:
            build(**fields)
        self.check_sentence(raised.value, param)

    def check_sentence(self, error, param):
        assert type(error) is InvalidRequest
        assert error.param == param
        assert error.message.startswith(f"{param}: ")
        assert error.message.endswith(".")
        assert "\n" not in error.message
        assert "pydantic" not in error.message.lower()
        assert len(error.message) < 250

    def test_the_sentence_shows_what_was_given(self):
        with pytest.raises(InvalidRequest) as raised:
            build(max_tokens=0)
        assert raised.value.message == "max_tokens: input should be greater than or equal to 1 (got 0)."

    def test_the_sentence_does_not_repeat_a_whole_prompt(self):
        with pytest.raises(InvalidRequest) as raised:
            build(prompt=["word"] * 10_000)
        assert len(raised.value.message) < 200

    @pytest.mark.parametrize(
        ("fields", "sentence"),
        [
            ({"prompt": None}, "Give exactly one of prompt, prompt_token_ids and messages."),
            (
                {"prompt_token_ids": [1]},
                "Give exactly one of prompt, prompt_token_ids and messages "
                "(got prompt and prompt_token_ids).",
            ),
        ],
    )
    def test_exactly_one_input(self, fields, sentence):
        with pytest.raises(InvalidRequest) as raised:
            build(**fields)
        assert raised.value.message == sentence

    @pytest.mark.parametrize(
        ("name", "offered"),
        [
            ("max_token", "max_tokens"),
            ("temprature", "temperature"),
            ("prioritiy", "priority"),
            ("top-k", "top_k"),
        ],
    )
    def test_an_unknown_parameter_offers_the_nearest(self, name, offered):
        with pytest.raises(UnknownParameter) as raised:
            build(**{name: 1})
        assert raised.value.message == f"{name}: unknown parameter; did you mean {offered!r}?"
        assert raised.value.param == name

    @pytest.mark.parametrize("name", ["v", "sampling", "samplin", "frequency_of_the_moon"])
    def test_what_is_offered_exists(self, name):
        """`sampling` and `v` are fields of the message, not parameters: never taken, never offered."""
        with pytest.raises(UnknownParameter) as raised:
            build(**{name: 1})
        assert "'sampling'?" not in raised.value.message
        assert "'v'?" not in raised.value.message

    def test_a_request_survives_the_wire(self):
        request = build(max_tokens=3, stop=["a", "b"], seed=2**64 - 1, deadline_s=1.5, priority=9)
        assert GenerateRequest.model_validate_json(request.model_dump_json(exclude_defaults=True)) == request


class TestVersions:
    """One version of pagefleet reads what another wrote."""

    FINGERPRINT = Fingerprint(weights="w", tokenizer="t", dtype="d", backend="b", version="v")
    STORED = (
        ErrorInfo(code="c", message="m"),
        LogEntry(offset=0, token_ids=[1], texts=["a"]),
        AcceptedEvent(num_prompt_tokens=1, attempt=1),
        EndedEvent(state=JobState.DONE, num_tokens=[1], finish_reasons=["stop"]),
        ChoiceResult(),
        JobResult(job_id="j", model="m", state=JobState.DONE, choices=[ChoiceResult()]),
        FINGERPRINT,
        ModelCard(name="m", max_model_len=1, vocab_size=1, max_queue_depth=1, fingerprint=FINGERPRINT),
        WorkerStatus(worker_id="w", model="m", host="h", pid=1, started_at=0.0),
    )

    def test_all_stored_models_are_tested_here(self):
        stored = {model for model in StoredModel.__subclasses__() if model.__module__ == messages.__name__}
        assert {type(value) for value in self.STORED} == stored - {GenerateRequest}

    @pytest.mark.parametrize("value", STORED, ids=lambda value: type(value).__name__)
    def test_what_is_stored_may_have_newer_fields(self, value):
        newer = json.loads(value.model_dump_json()) | {"v": 2, "invented_later": {"a": [1]}}
        read = type(value).model_validate_json(json.dumps(newer))
        assert read == value.model_copy(update={"v": 2})

    @pytest.mark.parametrize("value", STORED, ids=lambda value: type(value).__name__)
    def test_what_is_stored_is_still_of_the_right_types(self, value):
        first = next(name for name in type(value).model_fields if name != "v")
        wrong = json.loads(value.model_dump_json()) | {first: {"not": "this"}}
        with pytest.raises(ValidationError):
            type(value).model_validate_json(json.dumps(wrong))

    @pytest.mark.parametrize(
        "newer",
        [
            {"model": "m", "prompt": "x", "invented_later": 1},
            {"model": "m", "prompt": "x", "sampling": {"invented_later": 1}},
        ],
    )
    def test_a_request_may_not_have_fields_that_nobody_would_obey(self, newer):
        with pytest.raises(ValidationError, match="invented_later"):
            GenerateRequest.model_validate_json(json.dumps(newer))

    def test_states_are_pinned(self):
        assert "".join(JobState) == "QRDFCX"
        assert [state.value for state in JobState if state.is_final] == ["D", "F", "C", "X"]


class TestEvents:
    def test_a_publish_is_one_line_for_each_event(self):
        payload = (
            'a t {"offset":0,"token_ids":[7],"texts":["x\\n y"]}\nb a {"num_prompt_tokens":3,"attempt":1}'
        )
        (first, second) = split_events(payload)
        assert first[:2] == ("a", "t")
        assert parse_event(*first[1:]) == LogEntry(offset=0, token_ids=[7], texts=["x\n y"])
        assert second[:2] == ("b", "a")
        assert parse_event(*second[1:]) == AcceptedEvent(num_prompt_tokens=3, attempt=1)

    def test_any_text_stays_on_its_line(self):
        entry = LogEntry(offset=0, token_ids=[7], texts=["a b\n\r\u2028\x00c"])
        (event,) = split_events(f"j t {entry.to_json()}")
        assert parse_event(*event[1:]) == entry

    def test_a_kind_from_the_future_is_passed_over(self):
        assert parse_event("z", "{}") is None

    def test_every_token_has_its_text(self):
        with pytest.raises(ValidationError, match="2 token_ids but 1 texts"):
            LogEntry(offset=0, token_ids=[1, 2], texts=["a"])
        with pytest.raises(ValidationError, match="offset"):
            LogEntry(offset=-1, token_ids=[1], texts=["a"])

    def test_a_log_entry_is_short_on_the_wire(self):
        assert LogEntry(offset=4, token_ids=[1], texts=["a"]).to_json() == (
            '{"offset":4,"token_ids":[1],"texts":["a"]}'
        )

    def test_an_error_comes_back_as_it_was_raised(self):
        info = ErrorInfo.from_error(ContextTooLong("Too long.", param="prompt"))
        error = info.to_error("j")
        assert type(error) is ContextTooLong
        assert (error.message, error.param, error.job_id) == ("Too long.", "prompt", "j")

    def test_an_error_that_is_no_request_can_be_told_too(self):
        assert type(ErrorInfo.from_error(ProtocolError("Odd.")).to_error("j")) is ProtocolError


class TestTheEngineAgrees:
    """A request that the producer lets through must not be refused by the engine for the same field."""

    def test_the_same_fields_with_the_same_defaults(self):
        engine = EngineSamplingParams()
        wire = SamplingParams()
        assert list(SamplingParams.model_fields) == list(EngineSamplingParams.__dataclass_fields__)
        for name in SamplingParams.model_fields:
            value = getattr(wire, name)
            as_engine = tuple(value) if isinstance(value, list | dict) else value
            assert as_engine == getattr(engine, name), name

    def test_a_bias_may_come_with_the_keys_that_json_has(self):
        built = build(logit_bias={"50256": -100, 7: 0.5})
        assert built.sampling.logit_bias == {50256: -100.0, 7: 0.5}
        assert messages.GenerateRequest.model_validate_json(built.model_dump_json()) == built

    def test_the_keyword_arguments_are_the_fields(self):
        assert list(messages.SamplingOptions.__annotations__) == list(SamplingParams.model_fields)

    def test_each_option_of_a_job_is_a_field_or_the_clients(self):
        options = set(JobOptions.__annotations__) - {"job_id", "idle_timeout"}
        known = {*SamplingParams.model_fields, *messages.GenerateRequest.model_fields}
        assert options >= set(SamplingParams.model_fields)
        assert options <= known

    @pytest.mark.parametrize(
        ("name", "value", "accepted"),
        [
            ("max_tokens", 0, False),
            ("max_tokens", 1, True),
            ("max_tokens", True, False),
            ("max_tokens", 1.0, False),
            ("min_tokens", -1, False),
            ("min_tokens", 0, True),
            ("min_tokens", 256, True),
            ("min_tokens", 257, False),
            ("temperature", -1e-9, False),
            ("temperature", 0, True),
            ("temperature", 2.5, True),
            ("temperature", 100.0, True),
            ("temperature", NAN, False),
            ("temperature", INFINITY, False),
            ("temperature", True, False),
            ("temperature", "1", False),
            ("top_k", -1, False),
            ("top_k", 0, True),
            ("top_k", 2**31 - 1, True),
            ("top_k", 2**31, False),
            ("top_p", 0.0, False),
            ("top_p", 1e-9, True),
            ("top_p", 1, True),
            ("top_p", 1.0001, False),
            ("top_p", NAN, False),
            ("min_p", 0, True),
            ("min_p", 1.0, True),
            ("min_p", -0.1, False),
            ("min_p", 1.1, False),
            ("typical_p", 0, False),
            ("typical_p", 1, True),
            ("typical_p", 1.1, False),
            ("repetition_penalty", 0.0, False),
            ("repetition_penalty", 1e6, True),
            ("repetition_penalty", 1.1e6, False),
            ("repetition_penalty", NAN, False),
            ("presence_penalty", -2, True),
            ("presence_penalty", -2.01, False),
            ("presence_penalty", INFINITY, False),
            ("frequency_penalty", 2.0, True),
            ("frequency_penalty", 2.01, False),
            ("logit_bias", {5: 100, 6: -100.0}, True),
            ("logit_bias", {5: 100.1}, False),
            ("logit_bias", {-5: 1.0}, False),
            ("logit_bias", {"five": 1.0}, False),
            ("logit_bias", {5: NAN}, False),
            ("logit_bias", 5, False),
            ("allowed_token_ids", None, True),
            ("allowed_token_ids", [0], True),
            ("allowed_token_ids", [], False),
            ("allowed_token_ids", [-1], False),
            ("bad_words", "x", True),
            ("bad_words", ["x y"], True),
            ("bad_words", [" "], False),
            ("bad_words", [""], False),
            ("bad_words", [1], False),
            ("seed", None, True),
            ("seed", 0, True),
            ("seed", -1, False),
            ("seed", 2**64 - 1, True),
            ("seed", 2**64, False),
            ("seed", 1.0, False),
            ("stop", "x", True),
            ("stop", ["x", "y"], True),
            ("stop", [""], False),
            ("stop", "", False),
            ("stop", [1], False),
            ("stop", 1, False),
            ("stop_token_ids", [0], True),
            ("stop_token_ids", [-1], False),
            ("stop_token_ids", [1.0], False),
            ("stop_token_ids", 1, False),
            ("ignore_eos", 1, False),
            ("include_stop_str_in_output", "yes", False),
            ("skip_special_tokens", False, True),
            ("kept_special_tokens", ["<tool_call>"], True),
            ("kept_special_tokens", [""], False),
            ("kept_special_tokens", 1, False),
        ],
    )
    def test_the_same_boundaries(self, name, value, accepted):
        if accepted:
            SamplingParams(**{name: value})
            EngineSamplingParams(**{name: value})
        else:
            with pytest.raises(ValidationError):
                SamplingParams(**{name: value})
            with pytest.raises(InvalidRequestError):
                EngineSamplingParams(**{name: value})

    def test_the_wire_is_stricter_where_a_request_could_hurt_the_fleet(self):
        """Known differences: the engine has no limits of its own here."""
        for name, value in (
            ("max_tokens", 1_000_001),
            ("temperature", 100.5),
            ("stop", ["x"] * 65),
            ("stop", ["x" * 1025]),
            ("stop_token_ids", [1] * 1025),
            ("logit_bias", dict.fromkeys(range(1025), 1.0)),
            ("allowed_token_ids", [1] * 1_000_001),
            ("bad_words", ["x"] * 257),
            ("bad_words", ["x" * 1025]),
            ("stop", ("x",)),
        ):
            EngineSamplingParams(**{name: value})
            with pytest.raises(ValidationError):
                SamplingParams(**{name: value})


@given(
    st.integers(0, 127),
    st.integers(0, 10**6),
    st.lists(st.tuples(st.integers(0, 2**20), st.text(st.characters(exclude_categories=["Cs"])))),
)
def test_a_plain_entry_is_written_as_the_model_writes_it(choice, offset, tokens):
    ids, texts = [token_id for token_id, _ in tokens], [text for _, text in tokens]
    written = plain_entry_json(choice, offset, ids, texts)
    assert written == LogEntry(choice=choice, offset=offset, token_ids=ids, texts=texts).to_json()


PLAIN = {"offset": 3, "token_ids": [1, 2], "texts": ["a", "b"]}


@pytest.mark.parametrize("more", [{}, {"choice": 0}, {"choice": 127}, {"offset": 10**6}])
def test_a_plain_entry_is_read_as_the_model_reads_it(more):
    fields = PLAIN | more
    entry = LogEntry.model_validate_json(json.dumps(fields))
    assert LogEntry(**parse_plain_entry(json.dumps(fields))) == entry


@pytest.mark.parametrize(
    "more",
    [
        {"finish_reason": "stop"},
        {"logprobs": None},
        {"v": 2},
        {"offset": -1},
        {"offset": "3"},
        {"offset": 10**6 + 1},
        {"offset": 3.0},
        {"choice": 128},
        {"token_ids": [1, True]},
        {"token_ids": [1, 2.5]},
        {"token_ids": [1]},
        {"texts": "ab"},
        {"texts": ["a", None]},
    ],
)
def test_another_entry_is_left_to_the_model(more):
    assert parse_plain_entry(json.dumps(PLAIN | more)) is None


@pytest.mark.parametrize("body", ["", "[]", "{", "null", '{"offset":1,"token_ids":[]}'])
def test_a_broken_line_is_no_plain_entry(body):
    assert parse_plain_entry(body) is None
