"""docs/streaming.md: each pattern is served over a real socket, and its client goes away."""

from __future__ import annotations

import contextlib
import http.client
import re
import sys
import threading
import types
from pathlib import Path
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import pytest
import uvicorn

from pagefleet.api import FleetClient, FleetSettings, JobState
from pagefleet.api.contract import keys
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.workers.threads.polling import wait_until

PAGE = Path(__file__).parents[2] / "docs" / "streaming.md"
BLOCKS = dict(re.findall(r"^```python\n# (\w+)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL))
TEXTS = r"^def texts\(stream\):\n(?:    .*\n)+"


@pytest.fixture
def jobs(null_stack, monkeypatch):
    monkeypatch.setenv("REDIS_URL", null_stack.redis_url)
    store = JobStore(FleetSettings(redis_url=null_stack.redis_url))
    yield store
    store.close_connections()


def module_of(name):
    """The page's code, run as it is."""
    module = types.ModuleType(f"page_{name}")
    sys.modules[module.__name__] = module
    exec(compile(BLOCKS[name], f"{PAGE.name}: {name}", "exec"), module.__dict__)
    return module


class Quiet(WSGIRequestHandler):
    def log_message(self, *args):
        """Nothing: connections that break are what is tested."""


class Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def handle_error(self, *args):
        """As above."""


@contextlib.contextmanager
def served_by_wsgi(app):
    with make_server("127.0.0.1", 0, app, server_class=Server, handler_class=Quiet) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@contextlib.contextmanager
def served_by_uvicorn(app):
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    assert wait_until(lambda: server.started, 60)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join()


def leaves_nothing_running(port, jobs):
    """Reads a part of an answer, goes away, and looks what became of its job."""
    ledger = keys.open_jobs(keys.queue("null", "interactive"))
    before = set(jobs.redis.zrange(ledger, 0, -1))
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request("GET", "/answer?prompt=Hello")
        with connection.getresponse() as reply:
            assert reply.status == 200
            assert len(reply.read(20)) == 20
            (job_id,) = set(jobs.redis.zrange(ledger, 0, -1)) - before
            assert jobs.read(job_id, with_log=False).state is JobState.RUNNING
    return wait_until(lambda: jobs.read(job_id, with_log=False).state is JobState.CANCELLED, 15)


def test_starlette(jobs):
    with served_by_uvicorn(module_of("starlette").app) as port:
        assert leaves_nothing_running(port, jobs)


def test_flask(jobs):
    pytest.importorskip("flask")
    page = module_of("flask")
    with served_by_wsgi(page.app) as port:
        assert leaves_nothing_running(port, jobs)
    page.fleet.close()


def test_django(jobs):
    django = pytest.importorskip("django")
    from django.conf import settings
    from django.core.wsgi import get_wsgi_application
    from django.urls import path

    page = module_of("django")
    settings.configure(ROOT_URLCONF=page.__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="for tests", DEBUG=False)
    django.setup()
    page.urlpatterns = [path("answer", page.answer)]
    with served_by_wsgi(get_wsgi_application()) as port:
        assert leaves_nothing_running(port, jobs)
    page.fleet.close()


def test_the_generator_of_the_page_in_plain_wsgi(jobs):
    """What Flask's and Django's responses do with it, where neither is installed."""
    (texts,) = {re.search(TEXTS, BLOCKS[name], re.MULTILINE).group() for name in ("flask", "django")}
    names: dict[str, object] = {}
    exec(texts, names)
    with FleetClient() as fleet:

        def app(environ, start_response):
            stream = fleet.generate("Hello", max_tokens=2000)
            start_response("200 OK", [("content-type", "text/plain")])
            return Encoded(names["texts"](stream))

        with served_by_wsgi(app) as port:
            assert leaves_nothing_running(port, jobs)


class Encoded:
    """An iterable of bytes, closed as PEP 3333 says."""

    def __init__(self, texts):
        self._texts = texts

    def __iter__(self):
        return (text.encode() for text in self._texts)

    def close(self):
        self._texts.close()


def test_a_refused_request_is_refused_before_the_response(jobs):
    with (
        served_by_uvicorn(module_of("starlette").app) as port,
        contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection,
    ):
        connection.request("GET", "/answer?prompt=")
        with connection.getresponse() as reply:
            assert reply.status == 500
