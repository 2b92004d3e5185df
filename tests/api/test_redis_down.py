"""Without a server everything ends with one clear sentence; with one that comes back, a stream goes on."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time

import pytest

from pagefleet.api import AsyncFleetClient, FleetClient, FleetSettings, RedisUnavailable
from pagefleet.api.celery_app import make_celery
from pagefleet.api.closing import JobCloser
from pagefleet.api.connection import safe_url
from pagefleet.api.connections import send_message
from pagefleet.api.errors import ConfigurationError
from pagefleet.api.job_store import JobStore
from pagefleet.api.messages import GenerateRequest
from pagefleet.workers.local_stack import LocalStack, WorkerProcess
from pagefleet.workers.redis_server import RedisServer, free_port

CONNECT_TIMEOUT_S = 1.0
BAR_S = 3 * CONNECT_TIMEOUT_S
START_S = 3 * 1.5
"""What a Python process needs to start and import Celery, three times over."""
SENTENCE = (
    r"No answer from Redis at redis://127\.0\.0\.1:\d+/0 \(.+\); is it running, and does REDIS_URL name it\?"
)


@pytest.fixture
def nowhere():
    """A server's address at which nobody listens."""
    return f"redis://127.0.0.1:{free_port()}/0"


@pytest.fixture
def deaf():
    """An address that takes connections and never answers, as a server that hangs does."""
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield f"redis://127.0.0.1:{listener.getsockname()[1]}/0"


def settings(url):
    return FleetSettings(
        redis_url=url, connect_timeout_s=CONNECT_TIMEOUT_S, socket_timeout_s=CONNECT_TIMEOUT_S
    )


def pagefleet(*arguments, url):
    """Runs the command line and returns it with the seconds that it took."""
    environment = os.environ | {"REDIS_URL": url, "PAGEFLEET_CONNECT_TIMEOUT_S": str(CONNECT_TIMEOUT_S)}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "pagefleet.api.cli.main", *arguments],
        capture_output=True, text=True, timeout=60, env=environment, input="",
    )  # fmt: skip
    return done, time.monotonic() - started


class TestNobodyThere:
    @pytest.mark.parametrize(
        "call",
        [
            lambda fleet: fleet.generate("Hello"),
            lambda fleet: fleet.chat([{"role": "user", "content": "Hi"}]),
            lambda fleet: fleet.attach("j"),
            lambda fleet: fleet.cancel("j"),
            lambda fleet: fleet.models(),
            lambda fleet: fleet.status(),
        ],
        ids=["generate", "chat", "attach", "cancel", "models", "status"],
    )
    def test_the_client_says_so_soon(self, nowhere, call):
        started = time.monotonic()
        with (
            FleetClient(settings(nowhere)) as fleet,
            pytest.raises(RedisUnavailable, match=SENTENCE) as raised,
        ):
            call(fleet)
        assert time.monotonic() - started < BAR_S
        assert isinstance(raised.value, ConnectionError)
        assert "\n" not in raised.value.message

    async def test_the_async_client_says_so_soon(self, nowhere):
        fleet = AsyncFleetClient(settings(nowhere))
        started = time.monotonic()
        for call in (fleet.generate("Hello"), fleet.attach("j"), fleet.cancel("j"), fleet.models()):
            with pytest.raises(RedisUnavailable, match=SENTENCE):
                await call
        with pytest.raises(RedisUnavailable, match=SENTENCE):
            async with AsyncFleetClient(settings(nowhere)):
                pass
        assert time.monotonic() - started < BAR_S
        await fleet.close()

    @pytest.mark.parametrize(
        "arguments",
        [
            ("generate", "Hello"),
            ("status",),
            ("models", "list"),
            ("models", "remove", "m"),
            ("worker", "--model", "null", "--backend", "null"),
        ],
        ids=" ".join,
    )
    def test_the_command_line_says_so_soon(self, nowhere, arguments):
        done, seconds = pagefleet(*arguments, url=nowhere)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
        assert "Error: No answer from Redis" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert seconds < BAR_S + START_S

    def test_a_broker_that_does_not_take_the_message(self, nowhere):
        app = make_celery(settings(nowhere))
        started = time.monotonic()
        with pytest.raises(RedisUnavailable, match=r"The broker at .* did not take the job") as raised:
            send_message(app, "j", "m.interactive", 5)
        assert raised.value.job_id == "j"
        assert time.monotonic() - started < BAR_S
        app.close()

    def test_a_result_that_cannot_be_written(self, nowhere, store):
        """The store answers, Celery's result backend does not: the one who closes can try again."""
        request = GenerateRequest(model="m", prompt="Hello")
        store.submit("j", request, queue="m.interactive", channel="", max_depth=1)
        store.cancel("j")
        app = make_celery(settings(nowhere))
        started = time.monotonic()
        with pytest.raises(RedisUnavailable):
            JobCloser(store, app).close("j")
        assert time.monotonic() - started < BAR_S
        app.close()
        # Still open: the next attempt finds it.
        assert store.redis.zcard("pf:open:m.interactive") == 1


class TestNobodyAnswers:
    def test_the_client(self, deaf):
        started = time.monotonic()
        with FleetClient(settings(deaf)) as fleet, pytest.raises(RedisUnavailable):
            fleet.generate("Hello")
        assert time.monotonic() - started < BAR_S

    async def test_the_async_client(self, deaf):
        started = time.monotonic()
        with pytest.raises(RedisUnavailable):
            async with AsyncFleetClient(settings(deaf)):
                pass
        assert time.monotonic() - started < BAR_S

    def test_the_command_line(self, deaf):
        done, seconds = pagefleet("generate", "Hello", url=deaf)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("Error: ")
        assert len(done.stderr.strip().splitlines()) == 1
        # The default timeout of a reply goes before: 5 s.
        assert seconds < 3 * 5 + START_S


class TestWrongAddresses:
    @pytest.mark.parametrize("url", ["http://localhost", "localhost:6379", "redis://localhost:port/0"])
    def test_a_url_that_is_none_of_redis(self, url):
        with pytest.raises(ConfigurationError, match="is not a Redis URL"):
            FleetClient(redis_url=url).models()

    def test_a_password_is_never_shown(self):
        port = free_port()
        with pytest.raises(RedisUnavailable) as raised:
            FleetClient(redis_url=f"redis://user:s3cret@127.0.0.1:{port}/0").models()
        assert "s3cret" not in str(raised.value)
        assert safe_url("redis://:s3cret@h:1/0") == "redis://:***@h:1/0"
        assert safe_url("redis://h:1/0") == "redis://h:1/0"

    def test_a_wrong_setting_is_one_sentence_too(self, monkeypatch):
        monkeypatch.setenv("PAGEFLEET_CONNECT_TIMEOUT_S", "soon")
        with pytest.raises(ConfigurationError, match=r"^connect_timeout_s: [^\n]+\.$"):
            FleetClient()
        done, _ = pagefleet("status", url="redis://127.0.0.1:1/0")
        assert done.returncode == 1
        monkeypatch.delenv("PAGEFLEET_CONNECT_TIMEOUT_S")


class TestAServerThatComesBack:
    """Killed in mid-stream, started again on the same port with its append-only file."""

    @pytest.fixture
    def fragile(self, server_binary, tmp_path):
        server = RedisServer(tmp_path / "redis").start()
        worker = WorkerProcess(
            server.url,
            ["--model", "null", "--backend", "null", "--null-step-time", "0.02", "--drain-seconds", "1"],
            log_file=tmp_path / "worker.log",
        )
        worker.start().wait_ready(30)
        yield server
        worker.terminate()
        worker.wait(10)
        server.stop()

    def restart(self, server, away_s=0.3):
        server.kill()
        time.sleep(away_s)
        server.start()

    def test_every_stream_ends_complete(self, fragile):
        with FleetClient(redis_url=fragile.url) as fleet, FleetClient(redis_url=fragile.url) as other:
            own = fleet.generate("Hello", seed=7, max_tokens=100, timeout=60)
            for _ in range(10):
                next(own)
            attached = other.attach(own.job_id, timeout=60)
            text = next(attached).text
            time.sleep(1.2)  # appendfsync everysec: what is older than this second is on disk

            self.restart(fragile)

            own_text = own.text()
            text += "".join(chunk.text for chunk in attached)
            assert len(own_text) == 100
            assert text == own_text
            # And both clients work as before, at once.
            assert fleet.generate("Hello", seed=7, max_tokens=100).text() == own_text
            assert other.generate("Hello", seed=7, max_tokens=100).text() == own_text

    async def test_the_async_stream_ends_complete(self, fragile):
        async with AsyncFleetClient(redis_url=fragile.url) as fleet:
            own = await fleet.generate("Hello", seed=7, max_tokens=100, timeout=60)
            attached = await fleet.attach(own.job_id, timeout=60)
            text = (await anext(attached)).text
            await asyncio.sleep(1.2)
            await asyncio.to_thread(self.restart, fragile)
            text += "".join([chunk.text async for chunk in attached])
            assert len(text) == 100
            assert await own.text() == text
            assert await (await fleet.generate("Hello", seed=7, max_tokens=100)).text() == text

    def test_a_server_that_stays_away_ends_the_stream_with_its_outage(self, fragile):
        with FleetClient(settings(fragile.url)) as fleet:
            stream = fleet.generate("Hello", max_tokens=1000, timeout=1.0)
            next(stream)
            fragile.kill()
            started = time.monotonic()
            with pytest.raises(RedisUnavailable, match="No answer from Redis"):
                stream.text()
            assert time.monotonic() - started < 3 * (1.0 + CONNECT_TIMEOUT_S)
            fragile.start()

    def test_a_server_that_forgot_everything_gets_a_waiting_job_again(self, server_binary, tmp_path):
        """The same id, the same seed, so the same tokens, although the first server is gone for ever."""
        first = RedisServer(tmp_path / "first").start()
        store = JobStore(FleetSettings(redis_url=first.url))
        with FleetClient(redis_url=first.url) as fleet:
            store.publish_card(null_card())
            stream = fleet.generate("Hello", seed=7, max_tokens=16, timeout=60)
            first.kill()
            with LocalStackAt(first.port, tmp_path / "second"):
                result = stream.result()
        assert (result.job_id, result.text) == (stream.job_id, "f-)WMZsL2`QBIlih")
        store.close_connections()


def null_card():
    from pagefleet.api.messages import Fingerprint, ModelCard

    return ModelCard(
        name="null", max_model_len=4096, vocab_size=259, max_queue_depth=10,
        fingerprint=Fingerprint(weights="null", tokenizer="bytes", dtype="none", backend="null", version="0"),
    )  # fmt: skip


class LocalStackAt(LocalStack):
    """A stack whose empty server listens where another did."""

    def __init__(self, port, home):
        super().__init__(home, ["--model", "null", "--backend", "null", "--null-step-time", "0.005"])
        self.server = RedisServer(home / "redis", port)
        assert self.server.url == self.workers[0].redis_url or True
        for worker in self.workers:
            worker.redis_url = self.server.url
            worker._environment["REDIS_URL"] = self.server.url
