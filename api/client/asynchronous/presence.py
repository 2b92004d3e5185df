"""AsyncPresence: reports to the server that this client is alive, and which jobs it no longer reads."""

from __future__ import annotations

import logging
import time

from pagefleet.api.broker.closing import JobCloser
from pagefleet.api.client.asynchronous.tasks import AsyncTasks
from pagefleet.api.client.readers import AbandonedJob, Readers
from pagefleet.api.contract.errors import FleetError, RedisUnavailable
from pagefleet.api.protocol import operations
from pagefleet.api.protocol.async_job_store import AsyncJobStore
from pagefleet.api.protocol.operation_types import CancelVerdict

logger = logging.getLogger(__name__)


class AsyncPresence:
    """What the subscriber calls. It refers to no connections object, so that a client which was dropped
    and not closed can be garbage collected."""

    def __init__(self, store: AsyncJobStore, closer: JobCloser, tasks: AsyncTasks, client_id: str) -> None:
        self.readers = Readers()
        self._store = store
        self._closer = closer
        self._tasks = tasks
        self._client_id = client_id

    async def beat(self) -> None:
        """Renew the client's lease. Raises: RedisUnavailable."""
        await self._store.beat_client(self._client_id)

    async def report(self) -> bool:
        """Report the abandoned jobs. Returns False if the server is unavailable; then call again later."""
        for job in self.readers.abandoned():
            try:
                await self._report(job)
            except RedisUnavailable:
                self.readers.put_back(job)
                return False
            except FleetError as error:
                logger.debug("could not report that job %s has lost its reader: %s", job.job_id, error)
        return True

    async def _report(self, job: AbandonedJob) -> None:
        if job.must_end:
            verdict = await self._store.run(operations.cancel(job.job_id))
            if verdict is CancelVerdict.MISSING and time.monotonic() < job.retry_until:
                self.readers.put_back(job)
        else:
            verdict = await self._store.run(operations.leave(job.job_id, self._client_id))
            if verdict is CancelVerdict.READ and self.readers.is_read(job.job_id):
                # A new reader came while this one left.
                await self._store.watch(job.job_id, self._client_id)
        if verdict is CancelVerdict.ENDED:
            await self._tasks.in_thread(self._closer.close, job.job_id)
