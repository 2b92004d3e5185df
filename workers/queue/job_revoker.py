"""JobRevoker: cancel jobs for Celery's revoke."""

from __future__ import annotations

import logging

from pagefleet.api.broker.closing import JobCloser
from pagefleet.api.contract.errors import ProtocolError, RedisUnavailable
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.api.protocol.operation_types import CancelVerdict

logger = logging.getLogger(__name__)


class JobRevoker:
    """CANCEL (protocol line 16), called by the worker itself."""

    def __init__(self, store: JobStore, closer: JobCloser) -> None:
        self._store = store
        self._closer = closer

    def cancel(self, job_id: str) -> None:
        """Cancel a job. A waiting job ends here; a running one ends with the next STEP of its worker."""
        self._cancel(job_id, only_queued=False)

    def revoke(self, job_id: str, *, terminate: bool) -> bool:
        """Cancel a job if it is waiting, and with ``terminate`` also if it is running.

        Returns:
            Whether Celery should also mark the task as revoked. False if the job continues or has ended,
            because Celery would acknowledge its message before its callbacks are sent.
        """
        verdict = self._cancel(job_id, only_queued=not terminate)
        return terminate if verdict is None else verdict in (CancelVerdict.FLAGGED, CancelVerdict.MISSING)

    def _cancel(self, job_id: str, *, only_queued: bool) -> CancelVerdict | None:
        """Return None if the job could not be cancelled."""
        try:
            verdict = self._store.cancel(job_id, only_queued=only_queued)
            if verdict is CancelVerdict.ENDED:
                self._closer.close(job_id)
        except (RedisUnavailable, ProtocolError) as error:
            logger.warning("job %s could not be cancelled: %s", job_id, error)
            return None
        return verdict
