"""The tasks as Celery knows them. They never run as Python: EnginePool takes their messages."""

from __future__ import annotations

from typing import Any, Final

from celery import Celery
from celery.signals import task_revoked
from celery.worker import control
from kombu.utils.functional import maybe_list

from pagefleet.api.contract import keys
from pagefleet.workers.fleet_worker import FleetWorker
from pagefleet.workers.job.job_request import JobRequest

_NO_POOL: Final = "pagefleet.generate runs on EnginePool only; start the worker with `pagefleet worker`"


def register_tasks(app: Celery) -> None:
    """``pagefleet.generate``: what :class:`FleetClient` sends, and what a bare ``send_task`` may send."""

    def generate(**_fields: Any) -> None:
        raise RuntimeError(_NO_POOL)

    app.task(name=keys.GENERATE_TASK, Request=JobRequest)(generate)


_celerys_revoke: Final = control.revoke
_celerys_rate_limit: Final = control.rate_limit
_celerys_time_limit: Final = control.time_limit


@control.control_command(variadic="task_id", signature="[id1 [id2 [... [idN]]]]")  # type: ignore[untyped-decorator]
def revoke(state: Any, task_id: Any, terminate: bool = False, signal: Any = None, **options: Any) -> Any:
    """Revokes tasks by their ids, in place of Celery's command of this name: jobs that wait for a worker end
    at once, wherever their message is. Without ``terminate`` what runs, runs on, here and elsewhere."""
    worker: FleetWorker = state.app.fleet_worker
    task_ids = [str(each) for each in maybe_list(task_id) or []]
    revoked = [each for each in task_ids if worker.revoke(each, terminate=bool(terminate))]
    return _celerys_revoke(state, revoked, terminate, signal, **options)


# Celery's commands of these names answer "ok" and change nothing that a job would notice; add_consumer would
# take other services' messages, also where it was meant for their own workers.


@control.control_command(signature="<task_name> <rate_limit>")  # type: ignore[untyped-decorator]
def rate_limit(state: Any, task_name: str, rate_limit: Any, **options: Any) -> Any:
    """Refused for jobs: workers take a message when they have room."""
    if task_name != keys.GENERATE_TASK:
        return _celerys_rate_limit(state, task_name, rate_limit, **options)
    return control.nok(
        "pagefleet.generate has no rate limit: workers take a message when they have room. Limit what is "
        "sent: by --max-queue-depth, by --max-tenant-depth, or by API key at the gateway."
    )


@control.control_command(signature="<task_name> <soft_secs> [hard_secs]")  # type: ignore[untyped-decorator]
def time_limit(state: Any, task_name: Any = None, **options: Any) -> Any:
    """Refused for jobs: each message says its own."""
    if task_name != keys.GENERATE_TASK:
        return _celerys_time_limit(state, task_name, **options)
    return control.nok(
        "pagefleet.generate has no common time limit: send time_limit or deadline_s with each task."
    )


@control.control_command(signature="<queue>")  # type: ignore[untyped-decorator]
def add_consumer(state: Any, queue: Any = None, **_: Any) -> Any:
    """Refused: a worker serves its model's queues."""
    return control.nok(
        "a pagefleet worker takes messages from its model's queues only; start one of another model."
    )


@control.control_command(signature="[N=1]")  # type: ignore[untyped-decorator]
def pool_grow(state: Any, n: int = 1, **_: Any) -> Any:
    """Refused: the engine's seats are fixed at its start."""
    return control.nok("a pagefleet worker's seats are fixed at its start: --max-num-seqs.")


@control.control_command(signature="[N=1]")  # type: ignore[untyped-decorator]
def pool_shrink(state: Any, n: int = 1, **_: Any) -> Any:
    """Refused: the engine's seats are fixed at its start."""
    return pool_grow(state, n)


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
