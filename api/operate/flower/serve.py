"""Start Flower with our columns, pages and options, for which its modules are patched: it has no API."""

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
    """Serve until SIGTERM or Ctrl-C.

    Args:
        users: ``user:password`` of each user that may log in; empty: no login.
    """
    _patch_flower(settings)
    app = make_celery(settings)
    # Several of Flower's threads need connections at the same time; with a pool they deadlock.
    app.conf.broker_pool_limit = None
    arguments = [
        f"--address={settings.flower_address}",
        f"--port={settings.flower_port}",
        f"--tasks_columns={_COLUMNS}",
        *([f"--basic_auth={','.join(users)}"] if users else []),
    ]
    app.start(["--quiet", "flower", *arguments])


def _patch_flower(settings: FlowerSettings) -> None:
    JobTask.prompt_chars = settings.prompt_chars
    EventsState.Task = JobTask
    TASK_COLUMNS.update(queue_time="Queue time", attempts="Attempts")
    handlers = flower.urls.handlers
    handlers[:] = [
        _worker_page(each) if getattr(each, "name", None) == "worker" else each for each in handlers
    ]
    BaseApiHandler.write_error = _with_challenge(BaseApiHandler.write_error)
    BaseHandler.get_active_queue_names = _readable_names(BaseHandler.get_active_queue_names)
    # Workers get a new name at each start, so old names must be purged. FLOWER_* variables override this.
    options.purge_offline_workers = _FORGET_WORKERS_AFTER_S
    options.task_runtime_metric_buckets = list(_RUNTIME_BUCKETS_S)


def _worker_page(original: URLSpec) -> URLSpec:
    return URLSpec(original.regex.pattern, WorkerPage, name=original.name)


def _readable_names(all_names: Callable[[Any], list[str]]) -> Callable[[Any], list[str]]:
    """Leave out the queue names of the previous version, which workers still consume.

    A monitor's Redis user may not measure them, and one denied name leaves the whole page empty.
    """
    return lambda handler: [name for name in all_names(handler) if name.startswith(keys.QUEUE_PREFIX)]


def _with_challenge(write_error: Callable[..., None]) -> Callable[..., None]:
    """Add ``WWW-Authenticate`` to the 401 responses of Flower's API.

    A browser that opened the page of a task by a link sends the password only below that path. The buttons of
    the page call the API, for which the browser needs the challenge.
    """

    def challenging(handler: Any, status_code: int, **options: Any) -> None:
        if status_code == 401:
            handler.set_header("WWW-Authenticate", 'Basic realm="flower"')
        write_error(handler, status_code, **options)

    return challenging
