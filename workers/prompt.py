"""From a request on the wire to a request of the engine: tokens, limits, sampling parameters.

The worker owns the tokenizer and the chat template; a producer knows neither.
"""

from __future__ import annotations

from collections.abc import Sequence

from pagefleet.api.errors import ContextTooLong, FleetError, InvalidRequest
from pagefleet.api.keys import LANES
from pagefleet.api.messages import GenerateRequest, ModelCard
from pagefleet.api.model_cards import check_fits, check_prompt_length
from pagefleet.api.sampling import MAX_PROMPT_LOGPROBS
from pagefleet.api.sampling import SamplingParams as WireSamplingParams
from pagefleet.engine import (
    EngineRequest,
    Grammar,
    InvalidRequestError,
    LLMEngine,
    SamplingParams,
    StructuredOutput,
)
from pagefleet.engine.tokenizer import Tokenizer
from pagefleet.workers.active_choice import ActiveChoice


def tokenize(request: GenerateRequest, tokenizer: Tokenizer) -> list[int]:
    """Raises: InvalidRequestError where the chat template refuses the messages."""
    if request.prompt_token_ids is not None:
        return request.prompt_token_ids
    if request.messages is not None:
        messages = [message.model_dump(exclude_none=True) for message in request.messages]
        return tokenizer.apply_chat_template(messages)
    assert request.prompt is not None
    return tokenizer.encode(request.prompt)


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
        prompt_token_ids = tokenize(request, engine.tokenizer)
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
    """The prompt's text, where the answer is to begin with it."""
    if not request.echo:
        return ""
    if request.prompt is not None and request.truncate_prompt_tokens is None:
        return request.prompt
    return tokenizer.decode(list(computed.prompt_token_ids), request.sampling.skip_special_tokens)


def _grammar(request: GenerateRequest, engine: LLMEngine) -> Grammar | None:
    if request.structured_outputs is None:
        return None
    try:
        return engine.compile_grammar(StructuredOutput(**request.structured_outputs.model_dump()))
    except InvalidRequestError as error:
        raise fleet_error(error) from error


def urgency(request: GenerateRequest) -> int:
    """Larger is more urgent: the lane first, the priority within it."""
    return (len(LANES) - LANES.index(request.lane)) * 10 + request.priority


def fleet_error(error: InvalidRequestError) -> FleetError:
    """The engine's refusal in the producer's terms."""
    kind = ContextTooLong if error.code == "context_length" else InvalidRequest
    return kind(error.message, param=error.param)
