"""Sampling parameters on the wire. ``docs/sampling.md`` is written from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Self, TypedDict

from pydantic import Field, model_validator

from pagefleet.api.contract.wire_model import StoredModel, WireModel, wrong

MAX_SEED: Final = 2**64 - 1
MAX_RESULT_TOKENS: Final = 1_000_000
"""What ``max_tokens`` allows at most, and what a reader accepts."""
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

    The descriptions are the manual: ``python -m ops.sampling_page`` writes it.
    """

    n: int = Field(
        1,
        ge=1,
        le=MAX_CHOICES,
        description="Choices, each drawn by itself, each with its own log. Their prompt is computed once, "
        "but for its last block. A result's `text` is that of the first.",
    )
    max_tokens: int = Field(256, ge=1, le=MAX_RESULT_TOKENS, description="Tokens to generate at most.")
    min_tokens: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Before so many tokens no end-of-sequence token and none of `stop_token_ids` is chosen, "
        "and no stop string ends the text. At most `max_tokens`.",
    )
    temperature: float = Field(
        1.0,
        ge=0.0,
        le=100.0,
        allow_inf_nan=False,
        description="Divides the logits. 0 is greedy: the most likely token, whatever filters and seed.",
    )
    top_k: int = Field(0, ge=0, le=MAX_TOP_K, description="Keep the k most likely tokens. 0: all.")
    top_p: float = Field(
        1.0,
        gt=0.0,
        le=1.0,
        description="Keep the fewest most likely tokens whose share of what `min_p` and `top_k` left "
        "reaches p.",
    )
    min_p: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="Keep tokens at least this fraction as likely as the most likely one. Before `top_k`.",
    )
    typical_p: float = Field(
        1.0,
        gt=0.0,
        le=1.0,
        description="Keep the tokens whose information -log p is nearest to the entropy, until their "
        "share reaches p. After all other filters.",
    )
    repetition_penalty: float = Field(
        1.0,
        gt=0.0,
        le=MAX_REPETITION_PENALTY,
        description="For each token in the prompt or the output: a positive logit is divided by it, a "
        "negative one multiplied. Above 1 discourages.",
    )
    presence_penalty: float = Field(
        0.0, ge=-2.0, le=2.0, description="Subtracted from the logit of each token that the output has."
    )
    frequency_penalty: float = Field(
        0.0, ge=-2.0, le=2.0, description="Subtracted once for each time that the output has the token."
    )
    logit_bias: dict[_TokenId, _Bias] = Field(
        default_factory=dict,
        max_length=1024,
        description="Token id to what is added to its logit, -100 to 100.",
    )
    allowed_token_ids: list[_TokenId] | None = Field(
        None, min_length=1, max_length=1_000_000, description="Only these are chosen. Not given: all."
    )
    bad_words: list[_Word] = Field(
        default_factory=list,
        max_length=256,
        description="Words that the output never holds: as the tokenizer cuts them at the beginning of "
        "a text and, if that is as many tokens, after a blank. The last token of such a sequence is never "
        "chosen after the others.",
    )
    seed: int | None = Field(
        None,
        ge=0,
        le=MAX_SEED,
        description="The same request with the same seed makes the same draws; rounding may decide near ties "
        "(above). Drawn at submit if missing.",
    )
    stop: list[_Text] = Field(
        default_factory=list,
        max_length=64,
        description="Strings that end the text; one may be given as it is.",
    )
    stop_token_ids: list[_TokenId] = Field(
        default_factory=list, max_length=1024, description="Tokens that end the sequence."
    )
    include_stop_str_in_output: bool = Field(
        False, description="The text keeps the stop string or stop token that ended it."
    )
    ignore_eos: bool = Field(False, description="Generate on after an end-of-sequence token.")
    skip_special_tokens: bool = Field(True, description="Special tokens add nothing to the text.")
    kept_special_tokens: list[_Text] = Field(
        default_factory=list,
        max_length=64,
        description="Special tokens that add to the text all the same, each as it is spelled. A text that "
        "is no special token of the model's is passed over.",
    )
    logprobs: int | None = Field(
        None,
        ge=0,
        le=MAX_LOGPROBS,
        description="Each output token's log probability and rank, and so many most likely tokens with "
        "theirs: of the model's own distribution, before temperature, penalties, filters and grammars.",
    )
    prompt_logprobs: int | None = Field(
        None,
        ge=0,
        le=MAX_LOGPROBS,
        description="The same of each prompt token but the first. The prefix cache does not help then, and "
        f"there may be {MAX_PROMPT_LOGPROBS:,} values: prompt tokens times one more than this number.",
    )
    speculate: bool = Field(
        True,
        description="Tokens may be guessed ahead, from what stands earlier in prompt and output, where the "
        "worker does so (`--speculate`). The tokens are the same, up to the rounding of the model's dtype; "
        "they come sooner.",
    )

    @model_validator(mode="before")
    @classmethod
    def _as_users_write_them(cls, data: Any) -> Any:
        """One string in place of a list of them; token ids as JSON's keys are."""
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
            raise wrong("min_tokens", f"{self.min_tokens} is more than max_tokens, {self.max_tokens}")
        return self


class SamplingDefaults(StoredModel):
    """The parameters that a model's makers recommend, None where they say nothing."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    def fill(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """``given`` with what is said here for the parameters that it leaves out."""
        mine = self.model_dump(exclude={"v"}, exclude_none=True)
        return {**mine, **given}


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
