"""Celery's view of the worker: the task, which never runs as Python code, and the remote control commands."""

from __future__ import annotations

from typing import Any, Final

from celery import Celery
from celery.signals import task_revoked
from celery.worker import control
from kombu.utils.functional import maybe_list

from pagefleet.api.contract import keys
from pagefleet.workers.job.job_request import JobRequest
from pagefleet.workers.queue.job_revoker import JobRevoker

_NO_POOL: Final = "pagefleet.generate cannot run in this pool. Start the worker with `pagefleet worker`."


def register_tasks(app: Celery) -> None:
    """Register ``pagefleet.generate``, which FleetClient and plain ``send_task`` send. EnginePool runs it."""

    def generate(**_fields: Any) -> None:
        raise RuntimeError(_NO_POOL)

    app.task(name=keys.GENERATE_TASK, Request=JobRequest)(generate)


_celerys_revoke: Final = control.revoke
_celerys_rate_limit: Final = control.rate_limit
_celerys_time_limit: Final = control.time_limit


@control.control_command(variadic="task_id", signature="[id1 [id2 [... [idN]]]]")  # type: ignore[untyped-decorator]
def revoke(state: Any, task_id: Any, terminate: bool = False, signal: Any = None, **options: Any) -> Any:
    """Revoke tasks by id. Replaces Celery's command: a waiting job ends at once, wherever its message is. A
    running job continues unless ``terminate`` is set."""
    revoker: JobRevoker = state.app.fleet_worker.revoker
    task_ids = [str(each) for each in maybe_list(task_id) or []]
    revoked = [each for each in task_ids if revoker.revoke(each, terminate=bool(terminate))]
    return _celerys_revoke(state, revoked, terminate, signal, **options)


# Celery's own commands of these names would reply "ok" without an effect on jobs. `add_consumer` would take
# messages of other services, even if the command was meant for their workers.


@control.control_command(signature="<task_name> <rate_limit>")  # type: ignore[untyped-decorator]
def rate_limit(state: Any, task_name: str, rate_limit: Any, **options: Any) -> Any:
    """Refused for jobs, because workers take a message when they have room."""
    if task_name != keys.GENERATE_TASK:
        return _celerys_rate_limit(state, task_name, rate_limit, **options)
    return control.nok(
        "pagefleet.generate has no rate limit: workers take a message when they have room. To limit what is "
        "sent, use --max-queue-depth, --max-tenant-depth, or the gateway's limits per API key."
    )


@control.control_command(signature="<task_name> <soft_secs> [hard_secs]")  # type: ignore[untyped-decorator]
def time_limit(state: Any, task_name: Any = None, **options: Any) -> Any:
    """Refused for jobs, because each message has its own limits."""
    if task_name != keys.GENERATE_TASK:
        return _celerys_time_limit(state, task_name, **options)
    return control.nok(
        "pagefleet.generate has no common time limit. Pass time_limit or deadline_s with each task."
    )


@control.control_command(signature="<queue>")  # type: ignore[untyped-decorator]
def add_consumer(state: Any, queue: Any = None, **_: Any) -> Any:
    """Refused, because a worker serves only the queues of its model."""
    return control.nok(
        "a pagefleet worker consumes only its model's queues. Start a worker for the other model."
    )


@control.control_command(signature="[N=1]")  # type: ignore[untyped-decorator]
def pool_grow(state: Any, n: int = 1, **_: Any) -> Any:
    """Refused, because the engine's batch size is fixed."""
    return control.nok(
        "the batch size of a pagefleet worker is fixed. Restart it with another --max-num-seqs."
    )


@control.control_command(signature="[N=1]")  # type: ignore[untyped-decorator]
def pool_shrink(state: Any, n: int = 1, **_: Any) -> Any:
    """Refused, because the engine's batch size is fixed."""
    return pool_grow(state, n)


def cancel_on_revoke(revoker: JobRevoker) -> Any:
    """Run CANCEL (protocol line 16) if Celery revokes a message before the pool receives it.

    Returns:
        The signal's receiver. The caller must keep it, because the signal holds a weak reference.
    """

    def on_revoked(request: Any = None, **_: Any) -> None:
        if request is not None and getattr(request, "task", None) == keys.GENERATE_TASK:
            revoker.cancel(request.id)

    task_revoked.connect(on_revoked)
    return on_revoked
