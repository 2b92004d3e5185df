"""The client process: sends jobs, reads their streams and prints each event to stdout as one JSON line.

``python -m ops.chaos.reader URL sync|async``; on stdin one job a line:
``{"job_id": ..., "after": [n, ...], "attach": bool, "fields": {...}}``. It may be killed at any moment.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, Final

from pagefleet.api import AsyncFleetClient, FleetClient, FleetError, RedisUnavailable
from pagefleet.api.client.stream import Chunk
from pagefleet.api.contract.errors import JobNotFound
from pagefleet.api.contract.messages import JobResult

_RETRY_S: Final = 0.1
_TIMEOUT_S: Final = 60.0
"""Seconds for which sending a job is retried; its id makes that safe."""
_STREAM_TIMEOUT_S: Final = 300.0

_stdout_lock = threading.Lock()
Job = Mapping[str, Any]


def say(job: Job, kind: str, **values: Any) -> None:
    line = json.dumps({"job_id": job["job_id"], "kind": kind, "t": time.monotonic(), **values})
    with _stdout_lock:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def say_chunk(job: Job, chunk: Chunk) -> None:
    say(job, "chunk", choice=chunk.choice, offset=chunk.offset, token_ids=chunk.token_ids, text=chunk.text)


def say_end(job: Job, result: JobResult) -> None:
    reasons = [choice.finish_reason for choice in result.choices]
    say(job, "end", finish_reasons=reasons, state=result.state.value)


def may_retry(error: FleetError, job: Job, begun_at: float) -> bool:
    """Return whether to retry: after an outage, or if a job of this client vanished before it attached."""
    passing = isinstance(error, RedisUnavailable) or (isinstance(error, JobNotFound) and not job["attach"])
    return passing and time.monotonic() - begun_at < _TIMEOUT_S


def follow(fleet: FleetClient, job: Job) -> None:
    begun_at = time.monotonic()
    while True:
        try:
            if job["attach"]:
                stream = fleet.attach(job["job_id"], after=job["after"], idle_timeout=_STREAM_TIMEOUT_S)
            else:
                stream = fleet.generate(job_id=job["job_id"], idle_timeout=_STREAM_TIMEOUT_S, **job["fields"])
            say(job, "begun")
            break
        except FleetError as error:
            if not may_retry(error, job, begun_at):
                say(job, "error", error=repr(error))
                return
            time.sleep(_RETRY_S)
    try:
        for chunk in stream:
            say_chunk(job, chunk)
        say_end(job, stream.result())
    except FleetError as error:
        say(job, "error", error=repr(error))


async def follow_async(fleet: AsyncFleetClient, job: Job) -> None:
    begun_at = time.monotonic()
    while True:
        try:
            if job["attach"]:
                stream = await fleet.attach(job["job_id"], after=job["after"], idle_timeout=_STREAM_TIMEOUT_S)
            else:
                stream = await fleet.generate(
                    job_id=job["job_id"], idle_timeout=_STREAM_TIMEOUT_S, **job["fields"]
                )
            say(job, "begun")
            break
        except FleetError as error:
            if not may_retry(error, job, begun_at):
                say(job, "error", error=repr(error))
                return
            await asyncio.sleep(_RETRY_S)
    try:
        async for chunk in stream:
            say_chunk(job, chunk)
        say_end(job, await stream.result())
    except FleetError as error:
        say(job, "error", error=repr(error))


def read_sync(url: str) -> None:
    fleet = FleetClient(redis_url=url)
    for line in sys.stdin:
        threading.Thread(target=follow, args=(fleet, json.loads(line)), daemon=True).start()


async def read_async(url: str) -> None:
    async with AsyncFleetClient(redis_url=url) as fleet:
        tasks = set()
        while line := await asyncio.to_thread(sys.stdin.readline):
            tasks.add(asyncio.create_task(follow_async(fleet, json.loads(line))))


if __name__ == "__main__":
    if sys.argv[2] == "async":
        asyncio.run(read_async(sys.argv[1]))
    else:
        read_sync(sys.argv[1])
