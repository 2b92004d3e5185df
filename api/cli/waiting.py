"""WaitingNotice: print on standard error what a stream without new tokens waits for."""

from __future__ import annotations

import threading
import time
from typing import Final, Self

import click

from pagefleet.api.client.synchronous.fleet import Fleet
from pagefleet.api.client.synchronous.token_stream import TokenStream
from pagefleet.api.contract.errors import FleetError, RedisUnavailable
from pagefleet.api.contract.fleet_status import FleetStatus

_IDLE_S: Final = 2.0
_POLL_S: Final = 0.5


class WaitingNotice:
    """Watch one stream while the ``with`` block reads it.

    After two seconds without a chunk, it polls the status of the fleet and prints the reason when it changes.
    """

    def __init__(self, fleet: Fleet, stream: TokenStream) -> None:
        self._fleet = fleet
        self._stream = stream
        self._last_chunk_at = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="pagefleet-waiting", daemon=True)

    def chunk_received(self) -> None:
        """Report a chunk, which restarts the two seconds."""
        self._last_chunk_at = time.monotonic()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        printed = ""
        while not self._ended.wait(_POLL_S):
            if time.monotonic() - self._last_chunk_at < _IDLE_S:
                printed = ""
                continue
            reason = self._reason()
            if reason != printed and not self._ended.is_set():
                click.echo(f"waiting: {reason}", err=True)
                printed = reason

    def _reason(self) -> str:
        try:
            return reason_to_wait(self._fleet.status(), self._stream.model, self._stream.job_id)
        except RedisUnavailable:
            return "Redis does not answer; the job continues when it does."
        except FleetError as error:
            return error.message


def reason_to_wait(status: FleetStatus, model: str, job_id: str) -> str:
    """Return one sentence about why a job of ``model`` has no new token."""
    for refused in status.refused:
        if refused.job_id == job_id:
            return f"a worker gave the job back: {refused.reason}."
    if not any(worker.model == model for worker in status.workers):
        return f"no worker serves {model}; start one with `pagefleet worker --model {model}`."
    if any(running.job_id == job_id for running in status.running):
        return "a worker is running the job."
    num_queued = sum(queue.num_queued for queue in status.queues if queue.model == model)
    return f"the job is queued; {num_queued} messages wait for {model}."
