"""One Celery configuration for producers, workers and Flower.

It never becomes Celery's current app, so that it can live inside another service's own Celery task.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pagefleet.api.config.settings import FleetSettings
from pagefleet.api.contract import keys

if TYPE_CHECKING:
    from celery import Celery
    from kombu import Queue

# Redis's redelivery by timeout is switched off: a dead worker's messages come back through its lease.
_NEVER_S: Final = 10**8

# kombu folds ten priorities into four lists unless told otherwise.
PRIORITY_STEPS: Final = tuple(range(10))


def broker_priority(priority: int) -> int:
    """Ours has 9 as the most urgent; kombu's Redis transport has 0."""
    return PRIORITY_STEPS[-1] - priority


def make_queue(name: str) -> Queue:
    """A queue with an exchange of its own: a bare ``Queue`` would bind all to the default exchange."""
    from kombu import Exchange, Queue

    return Queue(name, Exchange(name), routing_key=name)


def make_queues(model_name: str) -> list[Queue]:
    """Every queue that a model's worker consumes, the most urgent lane first."""
    return [make_queue(name) for lane in keys.LANES for name in keys.queues(model_name, lane)]


def make_celery(settings: FleetSettings, *, worker_id: str | None = None) -> Celery:
    """A Celery app on the fleet's Redis.

    Args:
        settings: which server, and for how long results are kept.
        worker_id: set in a worker, whose unacknowledged messages then are its own.
    """
    # Imported where they are needed, here and below: a service that imports the client at its start should
    # not pay for Celery before it sends its first job.
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
        # No retries, as everywhere: who calls knows better when to.
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
        # Round robin between queues would give no lane order.
        "queue_order_strategy": "priority",
        "socket_connect_timeout": settings.connect_timeout_s,
        "socket_keepalive": True,
        "health_check_interval": 5,
        "max_retries": 0,
    }
    if worker_id is None:
        # A producer only sends: without it, one whose server falls silent would wait for ever.
        return options | {"socket_timeout": settings.socket_timeout_s}
    return options | keys.unacked(worker_id)
