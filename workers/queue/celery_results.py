"""Results in the form of Celery's Redis backend, for scripts that store them themselves.

``Backend.store_result`` reads and writes in two steps: what it replaces may be another's final result.
Written against Celery 5.7; ``tests/workers/test_celery_contract.py`` pins what is used.
"""

from __future__ import annotations

import os
from typing import Any

from celery import Celery, states

from pagefleet.api.contract.errors import FleetError


class ResultForm:
    """Celery's results of one worker as JSON.

    Args:
        hostname: the worker's name at Celery.
    """

    def __init__(self, app: Celery, hostname: str) -> None:
        self._backend: Any = app.backend
        self._hostname = hostname

    def started(self, job_id: str, context: Any) -> str:
        """``context`` is Celery's view of the message."""
        return self._meta(job_id, {"pid": os.getpid(), "hostname": self._hostname}, states.STARTED, context)

    def failure(self, job_id: str, error: FleetError, context: Any = None) -> str:
        return self._meta(job_id, self._backend.prepare_exception(error), states.FAILURE, context)

    def _meta(self, job_id: str, result: Any, state: str, context: Any) -> str:
        meta = self._backend._get_result_meta(result, state, None, context)
        encoded: str = self._backend.encode({**meta, "task_id": job_id})
        return encoded
