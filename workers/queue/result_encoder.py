"""ResultEncoder: results in the format of Celery's Redis backend, for Redis scripts that store them.

``Backend.store_result`` reads and writes in two steps, so that it could overwrite another final result.
Written against Celery 5.7; ``tests/workers/test_celery_contract.py`` tests the internals used here.
"""

from __future__ import annotations

import os
from typing import Any

from celery import Celery, states

from pagefleet.api.contract.errors import FleetError


class ResultEncoder:
    """Encodes Celery results of one worker as JSON.

    Args:
        hostname: the worker's Celery node name.
    """

    def __init__(self, app: Celery, hostname: str) -> None:
        self._backend: Any = app.backend
        self._hostname = hostname

    def started(self, job_id: str, context: Any) -> str:
        """``context`` is Celery's ``Context`` of the message."""
        return self._meta(job_id, {"pid": os.getpid(), "hostname": self._hostname}, states.STARTED, context)

    def failure(self, job_id: str, error: FleetError, context: Any = None) -> str:
        return self._meta(job_id, self._backend.prepare_exception(error), states.FAILURE, context)

    def _meta(self, job_id: str, result: Any, state: str, context: Any) -> str:
        meta = self._backend._get_result_meta(result, state, None, context)
        encoded: str = self._backend.encode({**meta, "task_id": job_id})
        return encoded
