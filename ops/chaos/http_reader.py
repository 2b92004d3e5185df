"""A client of gateways in its own process: it prints the same lines as ``reader.py`` and knows only HTTP.

``python -m ops.chaos.http_reader URL,URL MODEL``; it reads jobs from stdin like ``reader.py``. It asks
the gateways in turn: when a stream breaks off (``cut``), the next gateway is asked for the rest.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final, NamedTuple

import httpx

from ops.chaos.reader import Job, say

_TIMEOUT_S: Final = 60.0
_RETRY_S: Final = 0.1
_TRY_AGAIN: Final = (429, 503)
_MAPPED_FIELDS: Final = ("prompt_token_ids", "lane", "priority")
_USUAL_PRIORITY: Final = 5
_FIRST_ID: Final = "0ut"
"""The event id before the first event: no tokens seen, usage and token ids requested."""


class Refused(Exception):
    """The gateway refused the request, or its answer is not valid."""


class Event(NamedTuple):
    id: str
    data: str


class Gateways:
    """The replicas, as a client with a list of them sees them."""

    def __init__(self, urls: Sequence[str], model: str) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        self._http = httpx.AsyncClient(timeout=_TIMEOUT_S, limits=limits)
        self._urls = itertools.cycle(urls)
        self._model = model

    def next(self) -> str:
        return next(self._urls)

    def post(self, url: str, job: Job) -> Any:
        return self._http.stream("POST", f"{url}/v1/completions", json=body_of(self._model, job["fields"]))

    def resume(self, url: str, answer_id: str, last_id: str) -> Any:
        headers = {"last-event-id": last_id}
        return self._http.stream("GET", f"{url}/v1/jobs/{answer_id}/stream", headers=headers)


def body_of(model: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Return a fleet request as the body of a completion, without the lane, which an API key would set."""
    body = {name: value for name, value in fields.items() if name not in _MAPPED_FIELDS}
    return body | {
        "model": model,
        "prompt": fields["prompt_token_ids"],
        "priority": _USUAL_PRIORITY - fields.get("priority", _USUAL_PRIORITY),
        "stream": True,
        "stream_options": {"include_usage": True, "include_ids": True},
        "return_token_ids": True,
    }


async def events_of(reply: httpx.Response) -> AsyncIterator[Event]:
    """Yield complete events only; a partial one counts as not seen."""
    left = b""
    async for data in reply.aiter_bytes():
        *blocks, left = (left + data).split(b"\n\n")
        for block in blocks:
            fields = dict(line.split(": ", 1) for line in block.decode().split("\n") if ": " in line[1:])
            if "data" in fields:
                yield Event(fields.get("id", ""), fields["data"])


class Reading:
    """One job from its first token to its last, over as many connections as it takes."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._answer_id: str | None = None
        self._last_id = _FIRST_ID
        self._reasons: dict[int, str] = {}
        self._num_tokens = 0

    async def run(self, gateways: Gateways) -> None:
        begun_at = time.monotonic()
        while time.monotonic() - begun_at < _TIMEOUT_S:
            url = gateways.next()
            try:
                if await self._read(gateways, url):
                    return
                say(self._job, "cut")
            except Refused as error:
                say(self._job, "error", error=str(error))
                return
            except httpx.ConnectError:
                await asyncio.sleep(_RETRY_S)
            except httpx.TransportError:
                say(self._job, "cut")
        say(self._job, "error", error="no gateway answered")

    async def _read(self, gateways: Gateways, url: str) -> bool:
        """Return whether the job has ended. Raises: Refused; TransportError if the connection broke off."""
        if self._answer_id is None:
            asked = gateways.post(url, self._job)
        else:
            asked = gateways.resume(url, self._answer_id, self._last_id)
        async with asked as reply:
            if reply.status_code in _TRY_AGAIN:
                await asyncio.sleep(float(reply.headers["retry-after"]))
                raise httpx.ConnectError("later")
            if reply.status_code != 200:
                raise Refused(f"{reply.status_code} {(await reply.aread()).decode()}")
            if self._answer_id is None:
                self._answer_id = reply.headers["x-pagefleet-job"]
                say(self._job, "begun", answer_id=self._answer_id)
            async for event in events_of(reply):
                if event.data == "[DONE]":
                    self._end()
                    return True
                self._take(event.id, json.loads(event.data))
        return False

    def _take(self, event_id: str, data: dict[str, Any]) -> None:
        if "error" in data:
            raise Refused(json.dumps(data["error"]))
        counts = [int(count) for count in event_id.rstrip("abcdefghijklmnopqrstuvwxyz").split(".")]
        for choice in data["choices"]:
            index, token_ids = choice["index"], choice.get("token_ids", [])
            if token_ids or choice["text"]:
                offset = counts[index] - len(token_ids)
                self._num_tokens += len(token_ids)
                seen = {"offset": offset, "token_ids": token_ids, "text": choice["text"]}
                say(self._job, "chunk", choice=index, **seen)
            if choice["finish_reason"] is not None:
                self._reasons[index] = choice["finish_reason"]
        used = data["usage"]
        if used is not None and used["completion_tokens"] != self._num_tokens:
            raise Refused(f"usage {used} after {self._num_tokens} tokens")
        self._last_id = event_id

    def _end(self) -> None:
        choices = range(self._job["fields"].get("n", 1))
        say(self._job, "end", finish_reasons=[self._reasons.get(choice) for choice in choices])


async def read(urls: Sequence[str], model: str) -> None:
    gateways, tasks = Gateways(urls, model), set()
    while line := await asyncio.to_thread(sys.stdin.readline):
        tasks.add(asyncio.create_task(Reading(json.loads(line)).run(gateways)))


if __name__ == "__main__":
    asyncio.run(read(sys.argv[1].split(","), sys.argv[2]))
