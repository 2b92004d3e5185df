"""The tasks as Celery knows them. They never run as Python: EnginePool takes their messages."""

from __future__ import annotations

from typing import Any, Final

from celery import Celery
from celery.signals import task_revoked
from celery.worker import control
from kombu.utils.functional import maybe_list

from pagefleet.api import keys
from pagefleet.workers.fleet_worker import FleetWorker
from pagefleet.workers.job_request import JobRequest

_NO_POOL: Final = "pagefleet.generate runs on EnginePool only; start the worker with `pagefleet worker`"


def register_tasks(app: Celery) -> None:
    """``pagefleet.generate``: what :class:`FleetClient` sends, and what a bare ``send_task`` may send."""

    def generate(**_fields: Any) -> None:
        raise RuntimeError(_NO_POOL)

    app.task(name=keys.GENERATE_TASK, Request=JobRequest)(generate)


_celerys_revoke: Final = control.revoke


@control.control_command(variadic="task_id", signature="[id1 [id2 [... [idN]]]]")  # type: ignore[untyped-decorator]
def revoke(state: Any, task_id: Any, terminate: bool = False, signal: Any = None, **options: Any) -> Any:
    """Revokes tasks by their ids, in place of Celery's command of this name: jobs that wait for a worker end
    at once, wherever their message is. Without ``terminate`` what runs, runs on, here and elsewhere."""
    worker: FleetWorker = state.app.fleet_worker
    task_ids = [str(each) for each in maybe_list(task_id) or []]
    revoked = [each for each in task_ids if worker.revoke(each, terminate=bool(terminate))]
    return _celerys_revoke(state, revoked, terminate, signal, **options)


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
