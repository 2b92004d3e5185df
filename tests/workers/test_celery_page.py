"""docs/celery.md as a reader uses it: save the app, start its worker, run all snippets in order."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from celery import Celery
from gateway.snippets import blocks_of

from pagefleet.api import ConfigurationError, check_celery_app
from pagefleet.api.contract import keys
from pagefleet.workers.threads.polling import wait_until

MODULE, *SNIPPETS = [block.text for block in blocks_of("docs/celery.md") if block.language == "python"]


@pytest.fixture(scope="module")
def reader(null_stack, tmp_path_factory):
    """A folder with ``shop.py``, and a worker of it."""
    folder = tmp_path_factory.mktemp("shop")
    fleet_url = "redis://127.0.0.1:6379/0"
    assert MODULE.count(fleet_url) == 1
    (folder / "shop.py").write_text(MODULE.replace(fleet_url, null_stack.redis_url))
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    log = folder / "worker.log"
    command = ["--app", "shop", "worker", "--pool", "solo", "--loglevel", "INFO"]
    command += ["--without-gossip", "--without-mingle"]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "celery", *command], env=environment, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        assert wait_until(lambda: " ready." in log.read_text(), 60), log.read_text()
        yield environment
    finally:
        process.terminate()
        process.wait(60)


def test_every_snippet_runs(reader):
    """All snippets in one program, because they build on each other, with the test's model and queue."""
    program = "\n".join(SNIPPETS)
    queue = 'f"pagefleet.{MODEL}.interactive"'
    assert program.count(queue) == 1
    program = program.replace(queue, repr(keys.queue("null", "interactive")))
    program = program.replace('"smollm2-135m-instruct"', '"null"')
    done = subprocess.run(
        [sys.executable, "-c", program], env=reader, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout
    assert "UnknownParameter promt: unknown parameter; did you mean 'prompt'?" in said
    assert "no answer for " in said
    assert said.rstrip().endswith("D")


WRONG = [
    ({"result_backend": "rpc://"}, "result_backend: rpc:// is not Redis"),
    ({"result_backend": "cache+memory://"}, "is not Redis"),
    ({"result_backend": None}, "result_backend: none is not Redis"),
    ({"result_backend_transport_options": {"global_keyprefix": "shop"}}, "remove global_keyprefix"),
    ({"broker_transport_options": {"global_keyprefix": "shop"}}, "broker_transport_options: remove"),
    ({"result_backend": "{url}1"}, "is not the fleet's Redis"),
    ({"broker_url": "{url}1"}, "no pagefleet worker has run"),
    ({"broker_url": "amqp://guest@localhost//"}, "is not a Redis URL"),
    ({"task_serializer": "pickle"}, "task_serializer: must be 'json'"),
    ({"task_compression": "gzip"}, "task_compression: must be None"),
    ({"task_protocol": 1}, "task_protocol: must be 2"),
    ({"result_accept_content": ["pickle"]}, "result_accept_content: add 'json'"),
]


@pytest.mark.parametrize(("setting", "reason"), WRONG, ids=lambda value: str(value))
def test_an_app_that_would_wait_for_ever_is_told(null_stack, setting, reason):
    app = Celery("shop", broker=null_stack.redis_url, backend=null_stack.redis_url, set_as_current=False)
    url = null_stack.redis_url.rpartition("/")[0] + "/"
    app.conf.update(
        {name: value.format(url=url) if isinstance(value, str) else value for name, value in setting.items()}
    )
    try:
        with pytest.raises(ConfigurationError, match=reason):
            check_celery_app(app)
    finally:
        app.close()
