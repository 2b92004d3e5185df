"""From a request on the wire to a request of the engine: tokens, limits, sampling parameters.

The worker owns the tokenizer and the chat template; a producer knows neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from pagefleet.api.chat.conversation import TemplateInput, template_inputs
from pagefleet.api.chat.reasoning import closing_of, open_tag_of
from pagefleet.api.contract.errors import ContextTooLong, FleetError, InvalidRequest
from pagefleet.api.contract.keys import LANES
from pagefleet.api.contract.messages import GenerateRequest, ModelCard
from pagefleet.api.contract.model_cards import check_fits, check_prompt_length
from pagefleet.api.contract.sampling import MAX_PROMPT_LOGPROBS
from pagefleet.api.contract.sampling import SamplingParams as WireSamplingParams
from pagefleet.engine import (
    EngineRequest,
    Grammar,
    InvalidRequestError,
    LLMEngine,
    SamplingParams,
    StructuredOutput,
)
from pagefleet.engine.text.tokenizer import Tokenizer
from pagefleet.workers.job.active_choice import ActiveChoice

_LAST_TOKENS: Final = 16
"""In which a thought that the template opened stands."""


def tokenize(request: GenerateRequest, tokenizer: Tokenizer, tool_parser: str | None = None) -> list[int]:
    """Raises: InvalidRequestError where the chat template refuses the messages."""
    if request.prompt_token_ids is not None:
        return request.prompt_token_ids
    if request.messages is not None:
        ways = template_inputs(request.messages, request.tools, tool_parser)
        token_ids = _rendered(ways, request.chat_template_kwargs, tokenizer)
        opening = _opening(request, token_ids, tokenizer)
        if opening and request.structured_outputs is not None:
            # The text is to be what was asked for, from its first character: nothing is thought before.
            token_ids = token_ids + tokenizer.encode(closing_of(opening), add_special_tokens=False)
        return token_ids
    assert request.prompt is not None
    return tokenizer.encode(request.prompt)


def _rendered(
    ways: Sequence[TemplateInput], variables: Mapping[str, Any] | None, tokenizer: Tokenizer
) -> list[int]:
    """In the first way that the template takes. Raises: InvalidRequestError: in none."""
    *others, last = ways
    for way in others:
        with suppress(InvalidRequestError):
            return tokenizer.apply_chat_template(*way, variables)
    return tokenizer.apply_chat_template(*last, variables)


def _opening(request: GenerateRequest, prompt_token_ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """The thought that the template has begun for the model, where somebody reads it as such."""
    if request.reading is None or request.reading.reasoning is None:
        return ""
    return open_tag_of(tokenizer.decode(prompt_token_ids[-_LAST_TOKENS:], skip_special_tokens=False))


def engine_request(
    request_id: str,
    request: GenerateRequest,
    choices: Sequence[ActiveChoice],
    engine: LLMEngine,
    card: ModelCard,
) -> EngineRequest:
    """What the engine is to compute for a job whose log holds what ``choices`` have already.

    Raises:
        FleetError: the prompt is empty or too long, its chat template refuses it, or no text can be what
            ``structured_outputs`` asks for.
    """
    check_fits(request, card)
    try:
        prompt_token_ids = tokenize(request, engine.tokenizer, card.tool_parser)
    except InvalidRequestError as error:
        raise fleet_error(error) from error
    if not prompt_token_ids:
        raise InvalidRequest("The prompt has no tokens.", param="prompt")
    if request.truncate_prompt_tokens is not None:
        prompt_token_ids = prompt_token_ids[-request.truncate_prompt_tokens :]
    check_prompt_length(len(prompt_token_ids), card)
    check_prompt_logprobs(len(prompt_token_ids), request.sampling)
    return EngineRequest(
        request_id=request_id,
        prompt_token_ids=prompt_token_ids,
        sampling_params=SamplingParams(**request.sampling.model_dump()),
        logs=[None if choice.has_ended else tuple(choice.token_ids) for choice in choices],
        priority=urgency(request),
        cache_salt=request.cache_salt or "",
        prefix_cache=request.prefix_cache is not False,
        grammar=_grammar(request, engine),
    )


def check_prompt_logprobs(num_tokens: int, sampling: WireSamplingParams) -> None:
    """They are kept, sent and read as a whole. Raises: InvalidRequest."""
    if sampling.prompt_logprobs is None:
        return
    count = num_tokens * (1 + sampling.prompt_logprobs)
    if count > MAX_PROMPT_LOGPROBS:
        raise InvalidRequest(
            f"prompt_logprobs={sampling.prompt_logprobs} for {num_tokens} tokens are {count} values, more "
            f"than {MAX_PROMPT_LOGPROBS}: ask for fewer, or of a shorter prompt.",
            param="prompt_logprobs",
        )


def echo_of(request: GenerateRequest, computed: EngineRequest, tokenizer: Tokenizer) -> str:
    """The prompt's text, where the answer is to begin with it: of a conversation, the thought that its end
    has opened, so that the answer's text alone says what is thought."""
    if request.messages is not None:
        return _opening(request, list(computed.prompt_token_ids), tokenizer)
    if not request.echo:
        return ""
    if request.prompt is not None and request.truncate_prompt_tokens is None:
        return request.prompt
    return tokenizer.decode_prompt(list(computed.prompt_token_ids), request.sampling.skip_special_tokens)


def _grammar(request: GenerateRequest, engine: LLMEngine) -> Grammar | None:
    if request.structured_outputs is None:
        return None
    try:
        return engine.compile_grammar(StructuredOutput(**request.structured_outputs.model_dump()))
    except InvalidRequestError as error:
        # The gateway makes it of the tools; where it is of a format too, that has a place of its own in it.
        is_of_tools = request.reading is not None and request.reading.tools is not None
        is_of_tools = is_of_tools and "#/$defs/$response_format" not in error.message
        raise InvalidRequest(error.message, param="tools" if is_of_tools else error.param) from error


def urgency(request: GenerateRequest) -> int:
    """Larger is more urgent: the lane first, the priority within it."""
    return (len(LANES) - LANES.index(request.lane)) * 10 + request.priority


def fleet_error(error: InvalidRequestError) -> FleetError:
    """The engine's refusal in the producer's terms."""
    kind = ContextTooLong if error.code == "context_length" else InvalidRequest
    return kind(error.message, param=error.param)
