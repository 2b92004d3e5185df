"""Convert a request on the wire to a request of the engine: tokens, limits, sampling parameters.

Only the worker has the tokenizer and the chat template; producers do not.
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
"""Tokens at the end of the prompt in which to look for the open tag of a thought."""


def tokenize(request: GenerateRequest, tokenizer: Tokenizer, tool_parser: str | None = None) -> list[int]:
    """Return the prompt's token ids. Raise InvalidRequestError if the chat template rejects the messages."""
    if request.prompt_token_ids is not None:
        return request.prompt_token_ids
    if request.messages is not None:
        variants = template_inputs(request.messages, request.tools, tool_parser)
        token_ids = _render(variants, request.chat_template_kwargs, tokenizer)
        open_tag = _open_tag(request, token_ids, tokenizer)
        if open_tag and request.structured_outputs is not None:
            # Close the thought: the whole generated text must match the grammar.
            token_ids = token_ids + tokenizer.encode(closing_of(open_tag), add_special_tokens=False)
        return token_ids
    assert request.prompt is not None
    return tokenizer.encode(request.prompt)


def _render(
    variants: Sequence[TemplateInput], variables: Mapping[str, Any] | None, tokenizer: Tokenizer
) -> list[int]:
    """Render the first variant that the template accepts. Raise InvalidRequestError if it accepts none."""
    *others, last = variants
    for variant in others:
        with suppress(InvalidRequestError):
            return tokenizer.apply_chat_template(*variant, variables)
    return tokenizer.apply_chat_template(*last, variables)


def _open_tag(request: GenerateRequest, prompt_token_ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """Return the thought tag that the template left open; empty if the request does not parse thoughts."""
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
    """Return the engine's request of a job. Generation continues after the tokens that ``choices`` have.

    Raises:
        FleetError: the prompt is empty or too long, the chat template rejects the messages, or no text can
            match ``structured_outputs``.
    """
    check_fits(request, card)
    try:
        prompt_token_ids = tokenize(request, engine.tokenizer, card.tool_parser)
    except InvalidRequestError as error:
        raise fleet_error(error) from error
    if not prompt_token_ids:
        raise InvalidRequest("The prompt is empty: it has no tokens.", param="prompt")
    if request.truncate_prompt_tokens is not None:
        prompt_token_ids = prompt_token_ids[-request.truncate_prompt_tokens :]
    check_prompt_length(len(prompt_token_ids), card)
    check_prompt_logprobs(len(prompt_token_ids), request.sampling)
    return EngineRequest(
        request_id=request_id,
        prompt_token_ids=prompt_token_ids,
        sampling_params=SamplingParams(**request.sampling.model_dump()),
        logs=[None if choice.has_ended else tuple(choice.token_ids) for choice in choices],
        priority=engine_priority(request),
        cache_salt=request.cache_salt or "",
        prefix_cache=request.prefix_cache is not False,
        grammar=_grammar(request, engine),
    )


def check_prompt_logprobs(num_tokens: int, sampling: WireSamplingParams) -> None:
    """Raise InvalidRequest for too many prompt logprobs, which are stored and sent as one entry."""
    if sampling.prompt_logprobs is None:
        return
    count = num_tokens * (1 + sampling.prompt_logprobs)
    if count > MAX_PROMPT_LOGPROBS:
        raise InvalidRequest(
            f"prompt_logprobs={sampling.prompt_logprobs} for {num_tokens} tokens gives {count} values; the "
            f"maximum is {MAX_PROMPT_LOGPROBS}. Lower prompt_logprobs or shorten the prompt.",
            param="prompt_logprobs",
        )


def echo_text(request: GenerateRequest, computed: EngineRequest, tokenizer: Tokenizer) -> str:
    """Return the text to send before the first token.

    With ``echo`` it is the prompt. In a chat it is the thought tag that the template left open, so that the
    thought can be recognised from the generated text alone.
    """
    if request.messages is not None:
        return _open_tag(request, list(computed.prompt_token_ids), tokenizer)
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
        # The gateway makes the grammar from the tools. If there is a response_format too, the grammar has it
        # as a separate definition, which the message names.
        has_tools = request.reading is not None and request.reading.tools is not None
        is_tool_error = has_tools and "#/$defs/$response_format" not in error.message
        raise InvalidRequest(error.message, param="tools" if is_tool_error else error.param) from error


def engine_priority(request: GenerateRequest) -> int:
    """Return the priority in the engine: larger is more urgent. The lane counts first, then the priority."""
    return (len(LANES) - LANES.index(request.lane)) * 10 + request.priority


def fleet_error(error: InvalidRequestError) -> FleetError:
    """Convert the engine's error to the error that the client raises."""
    kind = ContextTooLong if error.code == "context_length" else InvalidRequest
    return kind(error.message, param=error.param)
