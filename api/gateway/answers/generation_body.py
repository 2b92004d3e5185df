"""GenerationBody: the fields that chat completions and completions share: OpenAI's, vLLM's, then our own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final

from pydantic import BeforeValidator, Field, JsonValue

from pagefleet.api.contract.messages import MAX_SEED, ModelCard
from pagefleet.api.contract.sampling import SamplingParams
from pagefleet.api.gateway.http.body import RequestBody
from pagefleet.api.gateway.http.errors import FIELD_NAMES, ApiError

_GUIDED: Final = {
    "guided_json": "json_schema",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
}
"""vLLM's older names of the structured output formats."""
_MOST_URGENT: Final = -4
_LEAST_URGENT: Final = 5


def _texts(value: Any) -> Any:
    """Accept a string instead of a list of strings."""
    return [value] if isinstance(value, str) else value


Texts = Annotated[list[str], BeforeValidator(_texts, json_schema_input_type=str | list[str])]


class StreamOptions(RequestBody):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = Field(None, description="with include_usage: usage in each event")
    include_ids: bool | None = Field(
        None, description="send the position of each event as its id and as `position` in its data"
    )


class JsonSchema(RequestBody):
    name: str | None = None
    description: str | None = None
    schema_: JsonValue = Field(None, alias="schema")
    strict: bool | None = Field(None, description="no effect: the schema is always enforced")


class ResponseFormat(RequestBody):
    type: str
    json_schema: JsonSchema | None = None
    schema_: JsonValue = Field(None, alias="schema", description="the schema, where llama.cpp has it")


class GenerationBody(RequestBody):
    """``SamplingParams`` validates the ranges of sampling parameters; docs/sampling.md lists them."""

    model: str = Field(description="canonical name or alias; GET /v1/models lists both")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: Texts | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    response_format: ResponseFormat | None = None
    # Accepted without an effect.
    user: str | None = Field(None, description="no effect")
    metadata: dict[str, JsonValue] | None = Field(None, description="no effect")
    store: bool | None = Field(None, description="no effect")

    # vLLM's.
    top_k: int | None = Field(None, description="-1 or 0: no limit")
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: Texts | None = None
    prompt_logprobs: int | None = None
    truncate_prompt_tokens: int | None = None
    cache_salt: str | None = None
    return_token_ids: bool | None = None
    priority: int | None = Field(
        None, ge=_MOST_URGENT, le=_LEAST_URGENT, description="default 0; lower values run earlier"
    )
    structured_outputs: dict[str, JsonValue] | None = Field(
        None, description="one of json, json_object, regex, choice, grammar"
    )
    guided_json: JsonValue = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None

    # Ours.
    kept_special_tokens: list[str] | None = None
    typical_p: float | None = None
    prefix_cache: bool | None = Field(None, description="false: do not use the prefix cache")
    background: bool | None = Field(None, description="continue the job if the client disconnects")
    deadline_s: float | None = Field(None, description="end the job after this time, in seconds")
    result_ttl_s: int | None = Field(None, description="keep the result for this time, in seconds")

    same: ClassVar[tuple[str, ...]] = (
        "truncate_prompt_tokens",
        "cache_salt",
        "prefix_cache",
        "deadline_s",
        "result_ttl_s",
    )
    """Fields that have the same name in a job, in addition to the sampling parameters."""

    @property
    def asked_tokens(self) -> int | None:
        """The limit of the answer's length that the request sets."""
        return self.max_tokens

    @property
    def names(self) -> Mapping[str, str]:
        """The names of job fields in this request, for error messages."""
        return {**FIELD_NAMES, **self._names_of_structure()}

    def _names_of_structure(self) -> dict[str, str]:
        whole = "structured_outputs"
        if self.structured_outputs is not None:
            return {whole: whole, f"{whole}.json_schema": f"{whole}.json"}
        guided = [name for name in _GUIDED if getattr(self, name) is not None]
        if guided:
            return {whole: guided[0], **{f"{whole}.{_GUIDED[name]}": name for name in guided}}
        is_plain = self.response_format is not None and self.response_format.json_schema is None
        schema = "response_format.schema" if is_plain else "response_format.json_schema.schema"
        return {whole: "response_format", f"{whole}.json_schema": schema}

    def check(self) -> None:
        """Check what does not depend on the model. Raises: ApiError."""
        if self.stream_options is not None and not self.stream:
            raise ApiError(
                400,
                "stream_options: requires `stream: true`; set it, or remove stream_options.",
                param="stream_options",
                code="invalid_value",
            )

    def job_fields(self, card: ModelCard) -> dict[str, Any]:
        """Return the fields of a job of this model. Raises: ApiError."""
        names = (*(SamplingParams.model_fields.keys() & type(self).model_fields.keys()), *self.same)
        fields = {name: value for name in names if (value := getattr(self, name)) is not None}
        if self.seed is not None:
            # OpenAI allows negative seeds.
            fields["seed"] = self.seed % (MAX_SEED + 1)
        if self.top_k == -1:
            fields["top_k"] = 0
        if self.priority is not None:
            fields["priority"] = _LEAST_URGENT - self.priority
        if self.background:
            fields["detached"] = True
        if self.return_token_ids:
            fields["return_prompt_token_ids"] = True
        structured = self._structured()
        if structured is not None:
            fields["structured_outputs"] = structured
        return {"model": self.model, **fields}

    def _structured(self) -> dict[str, Any] | None:
        """Raises: ApiError: the format is unknown, or given more than once."""
        asked = [each for each in (self._of_format(), self._of_vllm(), self._guided()) if each is not None]
        if len(asked) > 1:
            raise ApiError(
                400,
                "Use one of response_format, structured_outputs and guided_* only.",
                param="response_format",
            )
        return asked[0] if asked else None

    def _of_format(self) -> dict[str, Any] | None:
        wanted = self.response_format
        if wanted is None or wanted.type == "text":
            return None
        if wanted.type == "json_object" and wanted.schema_ is None:
            return {"json_object": True}
        if wanted.type not in ("json_object", "json_schema"):
            raise ApiError(
                400,
                "response_format.type: use text, json_object or json_schema.",
                param="response_format.type",
                code="invalid_value",
            )
        schema = wanted.schema_ if wanted.json_schema is None else wanted.json_schema.schema_
        if schema is None:
            param = "response_format.json_schema.schema"
            raise ApiError(400, f"{param}: required.", param=param, code="missing_required_parameter")
        return {"json_schema": schema}

    def _of_vllm(self) -> dict[str, Any] | None:
        if self.structured_outputs is None:
            return None
        given = {name: value for name, value in self.structured_outputs.items() if value is not None}
        if "json" in given:
            given["json_schema"] = _schema(given.pop("json"), "structured_outputs.json")
        return given

    def _guided(self) -> dict[str, Any] | None:
        given: dict[str, Any] = {
            "regex": self.guided_regex,
            "choice": self.guided_choice,
            "grammar": self.guided_grammar,
        }
        if self.guided_json is not None:
            given["json_schema"] = _schema(self.guided_json, "guided_json")
        given = {name: value for name, value in given.items() if value is not None}
        return given or None


def _schema(value: Any, param: str) -> Any:
    """Return a schema that is JSON or, as in vLLM, a string of JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise ApiError(400, f"{param}: not valid JSON.", param=param, code="invalid_value") from None
