"""``/v1/jobs/{id}``: read the state of an answer, resume its stream, cancel or delete it.

The id is that of a completion, or of any job of the tenant.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

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
from pagefleet.api.gateway.jobs.job_shape import common_state, job_fields
from pagefleet.api.gateway.openai import chat_completions, completions
from pagefleet.api.protocol.job_record import JobRecord

_MAX_CHARS: Final = 128


async def show(request: Request) -> Response:
    """Return the state, and the answer after the job has ended."""
    gateway, key = reader_of(request)
    answer_id = request.path_params["job_id"]
    records = await _records(gateway, key, answer_id, with_log=True)
    return await large_answer(lambda: _job_with_result(answer_id, records))


def _job_with_result(answer_id: str, records: Sequence[JobRecord]) -> dict[str, Any]:
    job = {**job_fields(answer_id, records), "result": None}
    if job["error"] is None and common_state(records).is_final:
        job["result"] = _shape(answer_id, records[0]).whole([record.result() for record in records])
    return job


async def cancel(request: Request) -> Response:
    """Cancel the jobs, within a step of the engine. The answer so far is kept."""
    gateway, key = reader_of(request)
    answer_id = request.path_params["job_id"]
    await _records(gateway, key, answer_id)
    for job_id in jobs_of(answer_id):
        await gateway.fleet.cancel(job_id)
    return JSONResponse(job_fields(answer_id, await _records(gateway, key, answer_id)))


async def delete(request: Request) -> Response:
    """Cancel the jobs, and remove their prompts, tokens and results."""
    gateway, key = reader_of(request)
    answer_id = request.path_params["job_id"]
    await _records(gateway, key, answer_id)
    for job_id in jobs_of(answer_id):
        await gateway.fleet.delete(job_id)
    return JSONResponse({"id": answer_id, "object": "job", "deleted": True})


async def stream(request: Request) -> Response:
    """Stream the rest of an answer after ``Last-Event-ID`` or ``?after=``."""
    gateway, key = reader_of(request)
    answer_id = request.path_params["job_id"]
    records = await _records(gateway, key, answer_id)
    num_choices = records[0].num_choices
    position = _position(request, num_choices * len(records))
    if _wants_token_ids(records[0]):
        # A client that counts tokens by their ids still needs them.
        position = position._replace(token_ids=True)
    shape = _shape(answer_id, records[0], wants_token_ids=position.token_ids)
    streams: list[AsyncTokenStream] = []
    try:
        for index, job_id in enumerate(jobs_of(answer_id)):
            after = position.counts[index * num_choices : (index + 1) * num_choices]
            # The parser of the text must also read what the client has received already.
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
    """Raises: JobNotFound: a job does not exist or belongs to a different tenant."""
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
    # A browser reconnects with the same URL; the header contains what it has received since.
    header = request.headers.get("last-event-id")
    name = "Last-Event-ID" if header else "after"
    text = header or request.query_params.get("after") or "0"
    position = sse.parse_position(text)
    if position is None or len(position.counts) not in (1, num_choices):
        raise ApiError(
            400,
            f"{name}: {text[:_MAX_CHARS]!r} is not the id of an event of this stream.",
            param=name,
            code="invalid_value",
        )
    if len(position.counts) < num_choices:
        position = position._replace(counts=position.counts * num_choices)
    return position


def _wants_token_ids(record: JobRecord) -> bool:
    """Return whether the job's request asked for token ids."""
    try:
        return record.request().return_prompt_token_ids
    except ProtocolError:
        return False


def _shape(answer_id: str, record: JobRecord, *, wants_token_ids: bool = False) -> Shape:
    """Return the format of the endpoint that the job was submitted to."""
    engines = record.fingerprints
    fields: dict[str, Any] = {
        "wants_token_ids": wants_token_ids or _wants_token_ids(record),
        "fingerprint": fingerprint_text(engines[0]) if engines else None,
    }
    try:
        request = record.request()
    except ProtocolError:
        return completions.CompletionShape(answer_id, record.model, **fields)
    if request.messages is not None:
        return chat_completions.ChatShape(answer_id, record.model, reading=request.reading, **fields)
    return completions.CompletionShape(answer_id, record.model, echo=request.echo, **fields)
