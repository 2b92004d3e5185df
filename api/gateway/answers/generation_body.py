"""What the bodies of generating endpoints have in common: OpenAI's names first, then vLLM's, then ours."""

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
"""vLLM's older names for the kinds of structured outputs."""
_MOST_URGENT: Final = -4
_LEAST_URGENT: Final = 5


def _texts(value: Any) -> Any:
    """A string in place of a list of them."""
    return [value] if isinstance(value, str) else value


Texts = Annotated[list[str], BeforeValidator(_texts, json_schema_input_type=str | list[str])]


class StreamOptions(RequestBody):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = Field(None, description="with include_usage: in each event")
    include_ids: bool | None = Field(
        None, description="each event has its position: as `position` in its data, and as its id"
    )


class JsonSchema(RequestBody):
    name: str | None = None
    description: str | None = None
    schema_: JsonValue = Field(None, alias="schema")
    strict: bool | None = Field(None, description="no effect: it is always kept")


class ResponseFormat(RequestBody):
    type: str
    json_schema: JsonSchema | None = None
    schema_: JsonValue = Field(None, alias="schema", description="llama.cpp's place for the schema")


class GenerationBody(RequestBody):
    """Ranges are checked where all requests are: ``docs/sampling.md`` has them."""

    model: str = Field(description="canonical name or alias; /v1/models lists them")
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
    # Known, and without an effect here.
    user: str | None = Field(None, description="no effect")
    metadata: dict[str, JsonValue] | None = Field(None, description="no effect")
    store: bool | None = Field(None, description="no effect")

    # vLLM's.
    top_k: int | None = Field(None, description="-1 or 0: all")
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
        None, ge=_MOST_URGENT, le=_LEAST_URGENT, description="0 is usual, lower is earlier"
    )
    structured_outputs: dict[str, JsonValue] | None = Field(
        None, description="one of json, json_object, regex, choice and grammar"
    )
    guided_json: JsonValue = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None

    # Ours.
    kept_special_tokens: list[str] | None = None
    typical_p: float | None = None
    prefix_cache: bool | None = Field(None, description="false: computes the whole prompt, keeps none of it")
    background: bool | None = Field(None, description="goes on although its client is gone")
    deadline_s: float | None = Field(None, description="seconds until the job is given up")
    result_ttl_s: int | None = Field(None, description="how long it can be read after its end")

    same: ClassVar[tuple[str, ...]] = (
        "truncate_prompt_tokens",
        "cache_salt",
        "prefix_cache",
        "deadline_s",
        "result_ttl_s",
    )
    """Fields that a job calls the same, beside its sampling parameters."""

    @property
    def asked_tokens(self) -> int | None:
        """How long the answer may be, where the request says it."""
        return self.max_tokens

    @property
    def names(self) -> Mapping[str, str]:
        """How this request spells fields of its job, for errors."""
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
        """What is wrong whatever the model. Raises: ApiError."""
        if self.stream_options is not None and not self.stream:
            raise ApiError(
                400,
                "stream_options: only a stream has them; set stream to true, or leave them out.",
                param="stream_options",
                code="invalid_value",
            )

    def job_fields(self, card: ModelCard) -> dict[str, Any]:
        """As a job of this model calls them. Raises: ApiError."""
        names = (*(SamplingParams.model_fields.keys() & type(self).model_fields.keys()), *self.same)
        fields = {name: value for name in names if (value := getattr(self, name)) is not None}
        if self.seed is not None:
            # OpenAI's may be negative.
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
        """Raises: ApiError: asked for in two ways, or in one that there isn't."""
        asked = [each for each in (self._of_format(), self._of_vllm(), self._guided()) if each is not None]
        if len(asked) > 1:
            raise ApiError(
                400, "Give one of response_format, structured_outputs and guided_*.", param="response_format"
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
            raise ApiError(400, f"{param}: it is missing.", param=param, code="missing_required_parameter")
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
    """vLLM takes a schema as a text too."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise ApiError(400, f"{param}: it is no JSON.", param=param, code="invalid_value") from None
