"""``POST /tokenize`` and ``/detokenize``, as vLLM shapes them. A worker of the model looks the tokens up."""

from __future__ import annotations

import asyncio
from typing import Final

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pagefleet.api.gateway.access.api_keys import ApiKey
from pagefleet.api.gateway.access.authentication import card_for
from pagefleet.api.gateway.access.rate_limit import rate_headers
from pagefleet.api.gateway.context import Gateway, caller_of
from pagefleet.api.gateway.http.body import RequestBody, ignored_headers, read_body, refuse
from pagefleet.api.gateway.openai.chat_message import Message

_NOT_HERE: Final = {
    "continue_final_message": "the last message can't be continued",
    "chat_template": "the model's own chat template is used",
    "chat_template_kwargs": "the chat template takes no further arguments",
    "tools": "tools are not supported here",
}


class TokenizeBody(RequestBody):
    model: str | None = Field(None, description="may be left out where there is one only")
    prompt: str | None = None
    messages: list[Message] | None = Field(None, min_length=1, description="in place of prompt")
    add_special_tokens: bool | None = Field(None, description="by default true for a prompt")
    add_generation_prompt: bool = Field(True, description="the assistant's next message is to follow")
    return_token_strs: bool | None = Field(None, description="also how the vocabulary spells them")


class DetokenizeBody(RequestBody):
    model: str | None = Field(None, description="may be left out where there is one only")
    tokens: list[int]


async def tokenize(request: Request) -> Response:
    gateway, key = caller_of(request)
    body = await read_body(request, TokenizeBody, gateway.settings)
    refuse(body, _NOT_HERE)
    headers = await _admit(gateway, key, body.model)
    messages = None
    if body.messages is not None:
        messages = [message.job_message(index) for index, message in enumerate(body.messages)]
    async with gateway.turns.of(key.tenant):
        found = await gateway.fleet.tokenize(
            body.prompt,
            messages=messages,
            model=body.model,
            add_special_tokens=body.add_special_tokens,
            add_generation_prompt=body.add_generation_prompt,
            return_token_strs=bool(body.return_token_strs),
        )
    told = {
        "count": found.count,
        "max_model_len": found.max_model_len,
        "tokens": found.token_ids,
        "token_strs": found.token_strs,
    }
    # Long ones take a while to spell: streams go on meanwhile.
    return await asyncio.to_thread(JSONResponse, told, headers={**headers, **ignored_headers(body)})


async def detokenize(request: Request) -> Response:
    gateway, key = caller_of(request)
    body = await read_body(request, DetokenizeBody, gateway.settings)
    headers = await _admit(gateway, key, body.model)
    async with gateway.turns.of(key.tenant):
        prompt = await gateway.fleet.detokenize(body.tokens, model=body.model)
    return JSONResponse({"prompt": prompt}, headers={**headers, **ignored_headers(body)})


async def _admit(gateway: Gateway, key: ApiKey, model: str | None) -> dict[str, str]:
    """A request of the key's minute, and none of its tokens. Raises: ApiError, RedisUnavailable."""
    headers = rate_headers(key, await gateway.rate_limit.admit(key, 0))
    await card_for(gateway.fleet, key, model)
    return headers
