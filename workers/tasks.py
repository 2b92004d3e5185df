"""The tasks as Celery knows them. They never run as Python: EnginePool takes their messages."""

from __future__ import annotations

from typing import Any, Final

from celery import Celery
from celery.signals import task_revoked

from pagefleet.api import keys
from pagefleet.workers.fleet_worker import FleetWorker

_NO_POOL: Final = "pagefleet.generate runs on EnginePool only; start the worker with `pagefleet worker`"


def register_tasks(app: Celery) -> None:
    """``pagefleet.generate``: what :class:`FleetClient` sends, and what a bare ``send_task`` may send."""

    def generate(**_fields: Any) -> None:
        raise RuntimeError(_NO_POOL)

    app.task(name=keys.GENERATE_TASK)(generate)


def cancel_on_revoke(worker: FleetWorker) -> Any:
    """Connects Celery's revoke of a message that the pool never saw to CANCEL (protocol line 16).

    Returns:
        The receiver; the signal holds it weakly.
    """

    def on_revoked(request: Any = None, **_: Any) -> None:
        if request is not None and getattr(request, "task", None) == keys.GENERATE_TASK:
            worker.cancel(request.id)

    task_revoked.connect(on_revoked)
    return on_revoked
