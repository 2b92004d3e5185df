# Generated from api/client/asynchronous/sources.py by `make sync-client`; do not edit.
"""The sources of a stream's events: the client's reply channel, or an attached job's own channel."""

from __future__ import annotations

import functools
import time
import weakref
from collections.abc import Sequence
from typing import Any, Final

from pagefleet.api.broker.arguments import request_repr
from pagefleet.api.client.backoff import Backoff
from pagefleet.api.client.events import LiveEvent, Resync
from pagefleet.api.client.last_seen import RESUBMIT_AFTER_S, LastSeen
from pagefleet.api.client.readers import leave_when_dropped
from pagefleet.api.client.submit_outcome import SETTLE_FOR_S, may_have_arrived, outcome_unknown
from pagefleet.api.client.synchronous.connections import Connections
from pagefleet.api.client.synchronous.inbox import Inbox
from pagefleet.api.client.synchronous.token_stream import Source
from pagefleet.api.contract.errors import FleetError, RedisUnavailable
from pagefleet.api.protocol.job_record import JobRecord, LogPosition
from pagefleet.api.protocol.operation_types import Operation, Submitted
from pagefleet.api.protocol.prepared import PreparedRequest, check_submitted, submit_operation
from pagefleet.api.protocol.sync_io import sleep

_SETTLE_BASE_S: Final = 0.05
_SETTLE_CAP_S: Final = 0.2
_MAX_TOGETHER: Final = 128
"""Submits in one round trip; they block the server for about 10 ms."""


class JobSource(Source):
    """A job's events, as the client's subscriber delivers them to an inbox, and the server's view of it."""

    def __init__(self, live: Connections, job_id: str) -> None:
        self._live = live
        self._job_id = job_id
        self._inbox = Inbox()
        self._reader = live.readers.add(job_id)
        self._leave_when_dropped = leave_when_dropped(self, self._reader)
        self._stop_listening: weakref.finalize[..., Any] | None = None

    def wait(self, timeout_s: float) -> LiveEvent | Resync | None:
        return self._inbox.get(timeout_s)

    def read(self, position: LogPosition) -> JobRecord | None:
        return self._live.store.read_after(self._job_id, position)

    def resubmit(self) -> bool:
        return False

    def expire(self) -> None:
        self._live.expire(self._job_id)

    def cancel(self) -> None:
        self._live.cancel(self._job_id)

    def delete(self) -> None:
        self._live.delete(self._job_id)

    def keep_running(self, keep: bool) -> None:
        self._reader.keeps_running = keep

    def leave(self, after_s: float = 0.0) -> None:
        self._inbox.close()
        if self._stop_listening is not None:
            self._stop_listening()
        if after_s:
            self._leave_when_dropped.detach()
            self._live.tasks.call_later(after_s, self._reader.leave)
        else:
            self._reader.leave()

    def close(self) -> None:
        self.keep_running(True)
        self.leave()


class OwnSource(JobSource):
    """A job that this client submits. Its events come over the client's reply channel.

    Args:
        discard_if_interrupted: cancel the job if :meth:`submit` is interrupted, even if it is detached. For
            an id that the caller does not know before the call returns.
    """

    def __init__(
        self, live: Connections, prepared: PreparedRequest, *, discard_if_interrupted: bool = False
    ) -> None:
        super().__init__(live, prepared.job_id)
        self._prepared = prepared
        self._discard_if_interrupted = discard_if_interrupted
        self._seen = LastSeen(live.store.settings.result_ttl_s)
        routes, deliver = live.subscriber.routes, self._seen.recording(self._inbox.put)
        routes.add(prepared.job_id, deliver)
        # Otherwise the inbox of a stream that its caller dropped would grow without end.
        self._stop_listening = weakref.finalize(self, routes.remove, prepared.job_id, deliver)

    def submit(self) -> bool:
        """SUBMIT and ENQUEUE. If the caller is cancelled, both are completed and then undone.

        Returns:
            False if the id existed already.

        Raises:
            RedisUnavailable: it names the job and states whether it may have been submitted.
        """
        try:
            return self._live.tasks.finish_or_undo(self._send, self.undo)
        except FleetError as error:
            raise self.failed(error) from error.__cause__

    def failed(self, error: FleetError) -> FleetError:
        """The job was not submitted, as far as is known. Returns the error, which names the job."""
        self.close()
        error.job_id = error.job_id or self._job_id
        return error

    def read(self, position: LogPosition) -> JobRecord | None:
        record = super().read(position)
        self._seen.read(record)
        return record

    def resubmit(self) -> bool:
        """A server that has lost its data gets the same job again: same id, same seed, same tokens."""
        # Its last events may still arrive.
        sleep(RESUBMIT_AFTER_S)
        if not self._seen.was_lost:
            return False
        self._live.tasks.finish(functools.partial(self._send, again=True))
        return True

    def undo(self, error: BaseException | None) -> None:
        """The caller was interrupted. ``error`` is what the submit failed with."""
        if error is not None and not may_have_arrived(error):
            self.close()
        elif self._discard_if_interrupted:
            self.close()
            self._live.readers.discard_job(self._prepared.job_id)
        else:
            self.leave()

    def _send(self, *, again: bool = False) -> bool:
        submit = self.submission(again=again)
        try:
            outcome: Submitted | FleetError = self._live.batch.run(submit)
        except RedisUnavailable as error:
            outcome = error
        return self.accepted(submit, outcome, time.monotonic() + SETTLE_FOR_S)

    def submission(self, *, again: bool = False) -> Operation[Submitted]:
        """Return the SUBMIT of the job, which also sends its message (ENQUEUE)."""
        prepared, live = self._prepared, self._live
        message = live.messages.encode(
            prepared.job_id,
            prepared.queue,
            prepared.request.priority,
            kwargs_repr=request_repr(prepared.request, live.store.settings.prompt_chars),
        )
        return submit_operation(prepared, live.channel, live.client_id, again=again, message=message)

    def accepted(self, submit: Operation[Submitted], outcome: Submitted | FleetError, until: float) -> bool:
        """Return whether SUBMIT created the job; False if its id existed.

        Args:
            outcome: the reply, or the error of the call.
            until: time until which a call without a reply is repeated.

        Raises:
            FleetError: what SUBMIT refused the job with.
        """
        if isinstance(outcome, RedisUnavailable) and may_have_arrived(outcome):
            outcome = self._repeated(submit, outcome, until)
        if isinstance(outcome, FleetError):
            raise outcome
        check_submitted(outcome, self._prepared)
        return outcome.created

    def _repeated(self, submit: Operation[Submitted], error: RedisUnavailable, until: float) -> Submitted:
        store, backoff = self._live.store, Backoff(_SETTLE_BASE_S, _SETTLE_CAP_S)
        while time.monotonic() < until:
            try:
                submitted = store.run(submit)
                if submitted.exists and store.reply_channel(self._job_id) == self._live.channel:
                    return Submitted(created=True)
                return submitted
            except RedisUnavailable as again:
                error = again
                sleep(backoff.next_s())
        raise outcome_unknown(error, self._job_id) from error


def submit_together(live: Connections, sources: Sequence[OwnSource]) -> list[bool | FleetError]:
    """Submit many jobs with few round trips. If the caller is cancelled, all are completed and then undone.

    Returns:
        For each job what :meth:`OwnSource.submit` returns or raises.
    """
    return live.tasks.finish_or_undo(
        functools.partial(_send_together, live, sources), functools.partial(_undo_together, sources)
    )


def _send_together(live: Connections, sources: Sequence[OwnSource]) -> list[bool | FleetError]:
    outcomes: list[bool | FleetError] = []
    for first in range(0, len(sources), _MAX_TOGETHER):
        chunk = sources[first : first + _MAX_TOGETHER]
        submits = [source.submission() for source in chunk]
        replies = live.store.run_together(submits)
        until = time.monotonic() + SETTLE_FOR_S
        for source, submit, reply in zip(chunk, submits, replies, strict=True):
            try:
                outcomes.append(source.accepted(submit, reply, until))
            except FleetError as error:
                outcomes.append(source.failed(error))
    return outcomes


def _undo_together(sources: Sequence[OwnSource], error: BaseException | None) -> None:
    for source in sources:
        source.undo(error)


class AttachedSource(JobSource):
    """A job that any client submitted. Its events come over the job's own channel."""

    def open(self) -> None:
        """Listen to the job's channel."""
        subscriber, deliver = self._live.subscriber, self._inbox.put
        # Otherwise the inbox of a stream that its caller dropped would grow without end.
        self._stop_listening = weakref.finalize(self, subscriber.unwatch, self._job_id, deliver)
        subscriber.watch(self._job_id, deliver)
