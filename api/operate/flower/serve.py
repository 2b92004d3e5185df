"""Starts Flower with our columns, pages and options. It takes them where it keeps its own: in modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import flower.urls
from flower.api import BaseApiHandler
from flower.events import EventsState
from flower.options import options
from flower.views import BaseHandler
from flower.views.tasks import TASK_COLUMNS
from tornado.routing import URLSpec

from pagefleet.api.broker.celery_app import make_celery
from pagefleet.api.config.settings import FlowerSettings
from pagefleet.api.contract import keys
from pagefleet.api.operate.flower.job_task import JobTask
from pagefleet.api.operate.flower.worker_page import WorkerPage

_COLUMNS: Final = "name,uuid,state,received,queue_time,runtime,attempts,retries,worker,kwargs"
_RUNTIME_BUCKETS_S: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0)
_FORGET_WORKERS_AFTER_S: Final = 3600


def serve(settings: FlowerSettings, users: list[str]) -> None:
    """Until SIGTERM or Ctrl-C.

    Args:
        users: ``user:password`` of each who may come in; empty: everybody.
    """
    _teach_flower(settings)
    app = make_celery(settings)
    # Flower asks from several threads at once and waits for each other's connections: a pool deadlocks it.
    app.conf.broker_pool_limit = None
    arguments = [
        f"--address={settings.flower_address}",
        f"--port={settings.flower_port}",
        f"--tasks_columns={_COLUMNS}",
        *([f"--basic_auth={','.join(users)}"] if users else []),
    ]
    app.start(["--quiet", "flower", *arguments])


def _teach_flower(settings: FlowerSettings) -> None:
    JobTask.prompt_chars = settings.prompt_chars
    EventsState.Task = JobTask
    TASK_COLUMNS.update(queue_time="Queue time", attempts="Attempts")
    handlers = flower.urls.handlers
    handlers[:] = [
        _worker_page(each) if getattr(each, "name", None) == "worker" else each for each in handlers
    ]
    BaseApiHandler.write_error = _with_challenge(BaseApiHandler.write_error)
    BaseHandler.get_active_queue_names = _readable_names(BaseHandler.get_active_queue_names)
    # A worker's name is new with each of its starts. FLOWER_* variables come later and win.
    options.purge_offline_workers = _FORGET_WORKERS_AFTER_S
    options.task_runtime_metric_buckets = list(_RUNTIME_BUCKETS_S)


def _worker_page(flowers: URLSpec) -> URLSpec:
    return URLSpec(flowers.regex.pattern, WorkerPage, name=flowers.name)


def _readable_names(all_names: Callable[[Any], list[str]]) -> Callable[[Any], list[str]]:
    """Without the old names of queues, which workers consume for one more version: a monitor's user may not
    measure them, and one name that is denied leaves the whole page empty."""
    return lambda handler: [name for name in all_names(handler) if name.startswith(keys.QUEUE_PREFIX)]


def _with_challenge(write_error: Callable[..., None]) -> Callable[..., None]:
    """Flower's API answers 401 without asking for a password. A browser that came by a link to a task's page
    knows the password for that folder alone, and sends it to a button's address only if it is asked."""

    def challenging(handler: Any, status_code: int, **options: Any) -> None:
        if status_code == 401:
            handler.set_header("WWW-Authenticate", 'Basic realm="flower"')
        write_error(handler, status_code, **options)

    return challenging
