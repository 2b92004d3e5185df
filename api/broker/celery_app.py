"""make_celery: the one Celery configuration for producers, workers and Flower.

The app never becomes Celery's current app, so that a task of another service's Celery app can use it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pagefleet.api.config.settings import FleetSettings
from pagefleet.api.contract import keys

if TYPE_CHECKING:
    from celery import Celery
    from kombu import Queue

# In effect switches redelivery by timeout off: a dead worker's messages are restored when its lease expires.
_NEVER_S: Final = 10**8

# By default kombu merges the ten priorities into four lists.
PRIORITY_STEPS: Final = tuple(range(10))


def broker_priority(priority: int) -> int:
    """Return kombu's priority, whose most urgent value is 0, for a job's priority, whose most urgent is 9."""
    return PRIORITY_STEPS[-1] - priority


def make_queue(name: str) -> Queue:
    """Return a queue with its own exchange; a bare ``Queue`` would bind all queues to the default one."""
    from kombu import Exchange, Queue

    return Queue(name, Exchange(name), routing_key=name)


def make_queues(model_name: str) -> list[Queue]:
    """Return the queues that a model's worker consumes, the most urgent lane first."""
    return [make_queue(name) for lane in keys.LANES for name in keys.queues(model_name, lane)]


def make_celery(settings: FleetSettings, *, worker_id: str | None = None) -> Celery:
    """Return a Celery app on the fleet's Redis.

    Args:
        settings: the server, and how long results are kept.
        worker_id: set by a worker, which then records its unacknowledged messages under its own keys.
    """
    # Celery is imported inside functions: a service that imports the client does not pay for Celery until it
    # sends its first job.
    from pagefleet.api.broker.fleet_app import FleetApp

    app = FleetApp("pagefleet", broker=settings.url, backend=settings.url, set_as_current=False)
    app.conf.update(
        broker_transport_options=_transport_options(settings, worker_id),
        broker_connection_timeout=settings.connect_timeout_s,
        broker_connection_retry_on_startup=True,
        redis_socket_connect_timeout=settings.connect_timeout_s,
        redis_socket_timeout=settings.socket_timeout_s,
        redis_socket_keepalive=True,
        broker_use_ssl=settings.tls or None,
        redis_backend_use_ssl=settings.tls or None,
        accept_content=["json"],
        result_accept_content=["json"],
        task_serializer="json",
        result_serializer="json",
        result_expires=settings.result_ttl_s,
        # No retries: the callers retry, as with all connections.
        result_backend_transport_options={"retry_policy": {"max_retries": 0}},
        task_acks_late=True,
        task_track_started=True,
        task_send_sent_event=True,
        task_create_missing_queues=True,
        worker_prefetch_multiplier=1,
        worker_send_task_events=True,
        worker_disable_rate_limits=True,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_enable_prefetch_count_reduction=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
    )
    return app


def _transport_options(settings: FleetSettings, worker_id: str | None) -> dict[str, Any]:
    options: dict[str, Any] = {
        "visibility_timeout": _NEVER_S,
        "unacked_restore_interval": 3600,
        "priority_steps": list(PRIORITY_STEPS),
        # The default, round robin, would ignore the order of the lanes.
        "queue_order_strategy": "priority",
        "socket_connect_timeout": settings.connect_timeout_s,
        "socket_keepalive": True,
        "health_check_interval": 5,
        "max_retries": 0,
    }
    if worker_id is None:
        # A producer only sends. Without a timeout it would wait forever for a server that stops answering.
        return options | {"socket_timeout": settings.socket_timeout_s}
    return options | keys.unacked(worker_id)
