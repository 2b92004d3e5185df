"""Sampling parameters on the wire. ``docs/sampling.md`` is generated from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Self, TypedDict

from pydantic import Field, model_validator

from pagefleet.api.contract.wire_model import StoredModel, WireModel, wrong

MAX_SEED: Final = 2**64 - 1
MAX_RESULT_TOKENS: Final = 1_000_000
"""Maximum of ``max_tokens``, and of the tokens that a reader accepts."""
MAX_CHOICES: Final = 128
MAX_LOGPROBS: Final = 20
"""OpenAI's limit, and vLLM's."""
MAX_PROMPT_LOGPROBS: Final = 16_384
MAX_TOP_K: Final = 2**31 - 1
MAX_REPETITION_PENALTY: Final = 1e6

_Text = Annotated[str, Field(min_length=1, max_length=1024)]
_Word = Annotated[str, Field(min_length=1, max_length=1024, pattern=r"\S")]
_TokenId = Annotated[int, Field(ge=0)]
_Bias = Annotated[float, Field(ge=-100.0, le=100.0, allow_inf_nan=False)]


class SamplingParams(WireModel):
    """How tokens are drawn and when a sequence ends. ``temperature=0`` is greedy.

    The descriptions are the manual: ``python -m ops.sampling_page`` generates the page from them.
    """

    n: int = Field(
        1,
        ge=1,
        le=MAX_CHOICES,
        description="Number of choices. Each is drawn independently and has its own log. The prompt is "
        "computed once for all of them, except its last block. A result's `text` is the first choice's.",
    )
    max_tokens: int = Field(
        256, ge=1, le=MAX_RESULT_TOKENS, description="Maximum number of tokens to generate."
    )
    min_tokens: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Until this many tokens are generated, end-of-sequence tokens and `stop_token_ids` are "
        "not chosen, and stop strings do not end the text. Must not exceed `max_tokens`.",
    )
    temperature: float = Field(
        1.0,
        ge=0.0,
        le=100.0,
        allow_inf_nan=False,
        description="Divides the logits. 0 is greedy: always the most likely token; filters and seed have "
        "no effect.",
    )
    top_k: int = Field(0, ge=0, le=MAX_TOP_K, description="Keep the k most likely tokens. 0 keeps all.")
    top_p: float = Field(
        1.0,
        gt=0.0,
        le=1.0,
        description="Keep the smallest set of most likely tokens whose total probability reaches p, "
        "after `min_p` and `top_k`.",
    )
    min_p: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="Keep tokens whose probability is at least this fraction of the most likely token's. "
        "Applied before `top_k`.",
    )
    typical_p: float = Field(
        1.0,
        gt=0.0,
        le=1.0,
        description="Keep the tokens whose information -log p is nearest to the entropy, until their "
        "total probability reaches p. Applied after all other filters.",
    )
    repetition_penalty: float = Field(
        1.0,
        gt=0.0,
        le=MAX_REPETITION_PENALTY,
        description="Applied to each token that is in the prompt or the output: divides a positive logit, "
        "multiplies a negative one. A value above 1 discourages repetition.",
    )
    presence_penalty: float = Field(
        0.0, ge=-2.0, le=2.0, description="Subtracted from the logit of each token that is in the output."
    )
    frequency_penalty: float = Field(
        0.0,
        ge=-2.0,
        le=2.0,
        description="Subtracted from a token's logit once for each occurrence in the output.",
    )
    logit_bias: dict[_TokenId, _Bias] = Field(
        default_factory=dict,
        max_length=1024,
        description="Maps token ids to values, -100 to 100, that are added to their logits.",
    )
    allowed_token_ids: list[_TokenId] | None = Field(
        None, min_length=1, max_length=1_000_000, description="Choose only these tokens. By default all."
    )
    bad_words: list[_Word] = Field(
        default_factory=list,
        max_length=256,
        description="Words that the output must not contain. A word is matched as the tokenizer splits it "
        "at the beginning of a text and, if that gives the same number of tokens, after a space. The last "
        "token of such a sequence is not chosen after the others.",
    )
    seed: int | None = Field(
        None,
        ge=0,
        le=MAX_SEED,
        description="The same request with the same seed makes the same draws; rounding may decide near ties "
        "(see above). By default a random seed is chosen at submit.",
    )
    stop: list[_Text] = Field(
        default_factory=list,
        max_length=64,
        description="Strings that end the text. A single string is accepted too.",
    )
    stop_token_ids: list[_TokenId] = Field(
        default_factory=list, max_length=1024, description="Tokens that end the sequence."
    )
    include_stop_str_in_output: bool = Field(
        False, description="Keep the stop string or stop token that ended the text in the text."
    )
    ignore_eos: bool = Field(False, description="Continue after an end-of-sequence token.")
    skip_special_tokens: bool = Field(True, description="Leave special tokens out of the text.")
    kept_special_tokens: list[_Text] = Field(
        default_factory=list,
        max_length=64,
        description="Special tokens that stay in the text even with `skip_special_tokens`, each written as "
        "in the vocabulary. Strings that are not special tokens of the model are ignored.",
    )
    logprobs: int | None = Field(
        None,
        ge=0,
        le=MAX_LOGPROBS,
        description="Return the log probability and rank of each output token and of this many most likely "
        "tokens, in the model's own distribution: before temperature, penalties, filters and grammars.",
    )
    prompt_logprobs: int | None = Field(
        None,
        ge=0,
        le=MAX_LOGPROBS,
        description="Return the same for each prompt token except the first. The request then does not use "
        f"the prefix cache. At most {MAX_PROMPT_LOGPROBS:,} values: the number of prompt tokens times one "
        "more than this number.",
    )
    speculate: bool = Field(
        True,
        description="Let the worker guess tokens ahead from earlier text of the prompt and the output "
        "(`--speculate`). The tokens are the same, up to the rounding of the model's dtype, and arrive "
        "sooner.",
    )

    @model_validator(mode="before")
    @classmethod
    def _as_users_write_them(cls, data: Any) -> Any:
        """Accept a single string for a list of strings, and token ids as strings: JSON has no other keys."""
        if not isinstance(data, Mapping):
            return data
        data = dict(data)
        for name in ("stop", "bad_words"):
            if isinstance(data.get(name), str):
                data[name] = [data[name]]
        bias = data.get("logit_bias")
        if isinstance(bias, Mapping):
            data["logit_bias"] = {_as_token_id(key): value for key, value in bias.items()}
        return data

    @model_validator(mode="after")
    def _min_within_max(self) -> Self:
        if self.min_tokens > self.max_tokens:
            raise wrong(
                "min_tokens",
                f"{self.min_tokens} is more than max_tokens={self.max_tokens}; lower it or raise max_tokens",
            )
        return self


class SamplingDefaults(StoredModel):
    """The parameters that the model's generation_config.json recommends; None if it does not set them."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    def fill(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``given`` with these values for parameters that it does not have."""
        return {**self.model_dump(exclude={"v"}, exclude_none=True), **given}


class SamplingOptions(TypedDict, total=False):
    """:class:`SamplingParams` as keyword arguments, for editors and type checkers."""

    n: int
    max_tokens: int
    min_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    allowed_token_ids: list[int] | None
    bad_words: str | list[str]
    seed: int | None
    stop: str | list[str]
    stop_token_ids: list[int]
    include_stop_str_in_output: bool
    ignore_eos: bool
    skip_special_tokens: bool
    kept_special_tokens: list[str]
    logprobs: int | None
    prompt_logprobs: int | None
    speculate: bool


def _as_token_id(key: Any) -> Any:
    return int(key) if isinstance(key, str) and key.isdecimal() and key.isascii() and len(key) < 20 else key
