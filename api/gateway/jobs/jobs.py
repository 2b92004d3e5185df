"""``/v1/jobs/{id}``: what became of an answer, its stream from any point on, and its end.

The id is that of a completion, or of any job of the tenant's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pagefleet.api.client.asynchronous.token_stream import AsyncTokenStream
from pagefleet.api.contract.errors import JobNotFound, ProtocolError
from pagefleet.api.gateway.access.api_keys import ApiKey
from pagefleet.api.gateway.access.authentication import tenant_of
from pagefleet.api.gateway.answers.event_stream import EventStream
from pagefleet.api.gateway.answers.job_ids import jobs_of
from pagefleet.api.gateway.answers.relay import Relay
from pagefleet.api.gateway.answers.shape import Shape, fingerprint_text
from pagefleet.api.gateway.context import Gateway, reader_of
from pagefleet.api.gateway.http import sse
from pagefleet.api.gateway.http.errors import ApiError
from pagefleet.api.gateway.http.sliced_json import large_answer
from pagefleet.api.gateway.jobs.job_shape import common_state, shown
from pagefleet.api.gateway.openai import chat_completions, completions
from pagefleet.api.protocol.job_record import JobRecord


async def show(request: Request) -> Response:
    """State, and the answer once there is one."""
    gateway, key = reader_of(request)
    answer_id = request.path_params["job_id"]
    records = await _records(gateway, key, answer_id, with_log=True)
    return await large_answer(lambda: _told(answer_id, records))


def _told(answer_id: str, records: Sequence[JobRecord]) -> dict[str, Any]:
    told = {**shown(answer_id, records), "result": None}
    if told["error"] is None and common_state(records).is_final:
        told["result"] = _shape(answer_id, records[0]).whole([record.result() for record in records])
    return told


async def cancel(request: Request) -> Response:
    """Ends what has not ended, within a step of the engine; what there is of the answer is kept."""
    gateway, key = reader_of(request)
    answer_id = request.path_params["job_id"]
    await _records(gateway, key, answer_id)
    for job_id in jobs_of(answer_id):
        await gateway.fleet.cancel(job_id)
    return JSONResponse(shown(answer_id, await _records(gateway, key, answer_id)))


async def delete(request: Request) -> Response:
    """Cancels what has not ended; prompt, tokens and result are gone."""
    gateway, key = reader_of(request)
    answer_id = request.path_params["job_id"]
    await _records(gateway, key, answer_id)
    for job_id in jobs_of(answer_id):
        await gateway.fleet.delete(job_id)
    return JSONResponse({"id": answer_id, "object": "job", "deleted": True})


async def stream(request: Request) -> Response:
    """The rest of an answer after ``Last-Event-ID`` or ``?after=``, however many gateways have died."""
    gateway, key = reader_of(request)
    answer_id = request.path_params["job_id"]
    records = await _records(gateway, key, answer_id)
    num_choices = records[0].num_choices
    position = _position(request, num_choices * len(records))
    if _wants_token_ids(records[0]):
        # Whoever counted them goes on with it.
        position = position._replace(token_ids=True)
    shape = _shape(answer_id, records[0], wants_token_ids=position.token_ids)
    streams: list[AsyncTokenStream] = []
    try:
        for index, job_id in enumerate(jobs_of(answer_id)):
            after = position.counts[index * num_choices : (index + 1) * num_choices]
            # What the reader has had is read once more where that decides what comes next.
            keep = shape.reader(0) is not None
            streams.append(await gateway.fleet.attach(job_id, after=after, idle_timeout=None, keep=keep))
    except BaseException:
        for each in streams:
            await each.close(after_s=gateway.settings.gateway_return_within_s)
        raise

    async def stop_reading() -> None:
        for each in streams:
            await each.leave_running()

    async def leave(returns_within_s: float = gateway.settings.gateway_return_within_s) -> None:
        # Jobs end with their last reader. A reader never cancels them: others may read them too.
        for each in streams:
            await each.close(after_s=returns_within_s)

    keep_alive_s = gateway.settings.gateway_keep_alive_s
    relay = Relay(streams, num_choices, shape, position, keep_alive_s, leave, can_return=True)
    return EventStream(gateway, relay, {}, leave, stop_reading)


async def _records(
    gateway: Gateway, key: ApiKey, answer_id: str, *, with_log: bool = False
) -> list[JobRecord]:
    """Raises: JobNotFound: there are none, or they are somebody else's."""
    await gateway.fleet.open()
    records = []
    for job_id in jobs_of(answer_id):
        record = await gateway.fleet.job(job_id, with_log=with_log)
        if record.tenant != tenant_of(key):
            raise JobNotFound("", job_id=job_id)
        records.append(record)
    return records


def _position(request: Request, num_choices: int) -> sse.Position:
    """Raises: ApiError."""
    # A browser that reconnects asks the address it was given: what it has had since stands in the header.
    header = request.headers.get("last-event-id")
    name = "Last-Event-ID" if header else "after"
    text = header or request.query_params.get("after") or "0"
    position = sse.parse_position(text)
    if position is None or len(position.counts) not in (1, num_choices):
        raise ApiError(400, f"{name}: it is no event's id of this stream.", param=name, code="invalid_value")
    if len(position.counts) < num_choices:
        position = position._replace(counts=position.counts * num_choices)
    return position


def _wants_token_ids(record: JobRecord) -> bool:
    """Whether the request did."""
    try:
        return record.request().return_prompt_token_ids
    except ProtocolError:
        return False


def _shape(answer_id: str, record: JobRecord, *, wants_token_ids: bool = False) -> Shape:
    """As the endpoint that it was asked of would have it."""
    engines = record.fingerprints
    told: dict[str, Any] = {
        "wants_token_ids": wants_token_ids or _wants_token_ids(record),
        "fingerprint": fingerprint_text(engines[0]) if engines else None,
    }
    try:
        request = record.request()
    except ProtocolError:
        return completions.CompletionShape(answer_id, record.model, **told)
    if request.messages is not None:
        return chat_completions.ChatShape(answer_id, record.model, reading=request.reading, **told)
    return completions.CompletionShape(answer_id, record.model, echo=request.echo, **told)
