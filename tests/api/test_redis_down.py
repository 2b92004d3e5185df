"""Without a server everything ends with one clear sentence; with one that comes back, a stream goes on."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
import time

import pytest
import redis as redis_py
from step_items import StepItem, step_batch, step_replies

from pagefleet.api import AsyncFleetClient, FleetClient, FleetSettings, RedisUnavailable
from pagefleet.api.broker.celery_app import make_celery
from pagefleet.api.broker.closing import JobCloser
from pagefleet.api.broker.sending import send_message
from pagefleet.api.contract.errors import ConfigurationError
from pagefleet.api.contract.messages import Fingerprint, GenerateRequest, LogEntry, ModelCard, WorkerStatus
from pagefleet.api.protocol.connection import safe_url
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.api.protocol.operation_types import Limits, StepStatus
from pagefleet.api.testing import fake_card
from pagefleet.workers.local.local_stack import LocalStack
from pagefleet.workers.local.ports import free_port
from pagefleet.workers.local.redis_server import RedisServer
from pagefleet.workers.local.server_endpoint import ServerEndpoint

CONNECT_TIMEOUT_S = 1.0
BAR_S = 6 * CONNECT_TIMEOUT_S
START_S = 10 * 1.5
"""What a Python process needs to start and import Celery, ten times over: the machine runs other tests."""
SENTENCE = r"No answer from Redis at redis://127\.0\.0\.1:\d+/0 \(.+\); check that it runs"


@pytest.fixture
def nowhere():
    """A server's address at which nobody listens."""
    return f"redis://127.0.0.1:{free_port()}/0"


@pytest.fixture
def deaf():
    """An address that takes connections and never answers, as a server that hangs does."""
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

    async def test_the_error_of_an_attach_names_the_job(self, nowhere):
        with FleetClient(settings(nowhere)) as fleet, pytest.raises(RedisUnavailable) as raised:
            fleet.attach("j")
        with pytest.raises(RedisUnavailable) as raised_async:
            await AsyncFleetClient(settings(nowhere)).attach("j")
        assert (raised.value.job_id, raised_async.value.job_id) == ("j", "j")

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
        store.submit("j", request, queue="m.interactive", channel="", limits=Limits(1, 10**6))
        store.cancel("j")
        app = make_celery(settings(nowhere))
        started = time.monotonic()
        with pytest.raises(RedisUnavailable):
            JobCloser(store, app).close("j")
        assert time.monotonic() - started < BAR_S
        with pytest.raises(redis_py.ConnectionError):
            app.backend.set("key", b"value")
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

    @pytest.mark.parametrize(
        ("url", "sentence"),
        [
            ("redis://127.0.0.1:6379/0?banana=1", "remove the option 'banana' from the URL"),
            ("redis://127.0.0.1:6379/0?socket_timeout=2", "the option 'socket_timeout'"),
            ("redis://localhost/abc", "the database must be a number"),
            ("redis://localhost/-1", "the database must be a number"),
            ("unix:///run/redis.sock", "Unix sockets are not supported"),
        ],
    )
    def test_a_url_that_redis_clients_read_differently(self, url, sentence):
        with pytest.raises(ConfigurationError, match=f"redis_url: .*{re.escape(sentence)}"):
            FleetClient(redis_url=url)

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


class HandWorker:
    """A worker without Celery and engine: it claims a job and steps through it by hand.

    What a worker's consumer does in an outage is the business of tests/workers; here it is the readers'.
    """

    def __init__(self, url):
        self.store = JobStore(FleetSettings(redis_url=url))
        self.num_tokens = 0

    def claim(self, job_id):
        self.job_id = job_id
        self.store.beat(WorkerStatus(worker_id="w", model="null", host="h", pid=1, started_at=0.0), 60)
        (claim,) = self.store.claim([job_id], "w", fake_card().fingerprint.model_dump_json())
        self.epoch = claim.epoch
        return self

    def step(self, num_tokens, reason=None):
        base, self.num_tokens = self.num_tokens, self.num_tokens + num_tokens
        self._send(base, reason)

    def _send(self, base, reason):
        ids = list(range(base, self.num_tokens))
        entry = LogEntry(offset=base, token_ids=ids, texts=[f"<{i}>" for i in ids], finish_reason=reason)
        (reply,) = step_replies(
            self.store.step("w", step_batch([StepItem(self.job_id, self.epoch, 0, base, entry)]))
        )
        if reply.status is StepStatus.BEHIND:
            self._send(reply.num_tokens, reason)


class TestAServerThatComesBack:
    """Killed in mid-stream, started again on the same port with its append-only file."""

    TEXT = "".join(f"<{i}>" for i in range(12))

    @pytest.fixture
    def fragile(self, server_binary, tmp_path):
        with RedisServer(tmp_path / "redis") as server:
            store = JobStore(FleetSettings(redis_url=server.url))
            store.publish_card(null_card())
            store.close_connections()
            yield server

    def restart(self, server):
        time.sleep(1.2)  # appendfsync everysec: what is older than this second is on disk
        server.kill()
        time.sleep(0.3)
        server.start()

    def test_a_stream_goes_on_and_ends_complete(self, fragile):
        with FleetClient(redis_url=fragile.url) as fleet, FleetClient(redis_url=fragile.url) as other:
            own = fleet.generate("Hello", idle_timeout=30)
            attached = other.attach(own.job_id, idle_timeout=30)
            worker = HandWorker(fragile.url).claim(own.job_id)
            worker.step(3)
            texts = [next(own).text, next(attached).text]
            self.restart(fragile)
            worker.step(8)
            worker.step(1, "length")
            assert texts[0] + "".join(chunk.text for chunk in own) == self.TEXT
            assert texts[1] + "".join(chunk.text for chunk in attached) == self.TEXT
            # And the client works as before, at once: its next job is queued.
            assert fleet.cancel(fleet.generate("Hello").job_id)

    def test_tokens_that_the_reader_has_and_the_server_forgot_come_once(self, fragile):
        """The last second of the append-only file is lost; the worker sends from where the log ends."""
        with FleetClient(redis_url=fragile.url) as fleet:
            stream = fleet.generate("Hello", idle_timeout=30)
            worker = HandWorker(fragile.url).claim(stream.job_id)
            worker.step(3)
            text = next(stream).text
            record = worker.store.redis.hgetall(f"pf:job:{stream.job_id}")
            worker.step(5)
            text += next(stream).text
            # What a rollback leaves: the hash and the log as they were.
            worker.store.redis.hset(f"pf:job:{stream.job_id}", mapping=record)
            worker.store.redis.rpop(f"pf:log:{stream.job_id}")
            self.restart(fragile)
            worker.step(4, "length")
            assert text + "".join(chunk.text for chunk in stream) == self.TEXT
            assert worker.store.read(stream.job_id).result().text == self.TEXT

    def test_what_a_dropped_connection_missed_is_read_at_once(self, fragile, live_only):
        """Without waiting for silence: the subscription reports that it is new."""
        with FleetClient(redis_url=fragile.url) as fleet:
            own = fleet.generate("Hello", idle_timeout=30)
            attached = fleet.attach(own.job_id, idle_timeout=30)
            worker = HandWorker(fragile.url).claim(own.job_id)
            worker.step(3)
            texts = [next(own).text, next(attached).text]
            worker.store.redis.client_kill_filter(_type="pubsub")
            worker.step(9, "length")
            started = time.monotonic()
            assert texts[0] + "".join(chunk.text for chunk in own) == self.TEXT
            assert texts[1] + "".join(chunk.text for chunk in attached) == self.TEXT
            assert time.monotonic() - started < live_only

    async def test_the_async_stream_goes_on_and_ends_complete(self, fragile):
        async with AsyncFleetClient(redis_url=fragile.url) as fleet:
            own = await fleet.generate("Hello", idle_timeout=30)
            attached = await fleet.attach(own.job_id, idle_timeout=30)
            worker = HandWorker(fragile.url).claim(own.job_id)
            worker.step(3)
            text = (await anext(attached)).text
            await asyncio.to_thread(self.restart, fragile)
            worker.step(9, "length")
            assert text + "".join([chunk.text async for chunk in attached]) == self.TEXT
            assert await own.text() == self.TEXT
            assert await fleet.cancel((await fleet.generate("Hello")).job_id)

    def test_a_server_that_stays_away_ends_the_stream_with_its_outage(self, fragile):
        with FleetClient(settings(fragile.url)) as fleet:
            stream = fleet.generate("Hello", idle_timeout=1.0)
            HandWorker(fragile.url).claim(stream.job_id).step(1)
            next(stream)
            fragile.kill()
            started = time.monotonic()
            with pytest.raises(RedisUnavailable, match="No answer from Redis"):
                stream.text()
            assert time.monotonic() - started < 3 * (1.0 + CONNECT_TIMEOUT_S)

    def test_the_whole_fleet_goes_on(self, server_binary, tmp_path):
        stack = LocalStack(
            tmp_path, ["--model", "null", "--backend", "null", "--null-step-time", "0.02"], drain_s=1
        )
        with stack, FleetClient(redis_url=stack.redis_url) as fleet:
            stream = fleet.generate("Hello", seed=7, max_tokens=120, idle_timeout=30)
            next(stream)
            self.restart(stack.server)
            assert len(stream.text()) == 120
            assert stack.workers[0].exit_status is None
            assert len(fleet.generate("Hello", max_tokens=4, idle_timeout=30).text()) == 4

    def test_a_server_that_forgot_everything_gets_a_waiting_job_again(self, server_binary, tmp_path):
        """The same id, the same seed, so the same tokens, although the first server is gone for ever."""
        endpoint = ServerEndpoint.kept_in(tmp_path / "second")
        first = RedisServer(tmp_path / "first", endpoint.port, password=endpoint.password).start()
        store = JobStore(FleetSettings(redis_url=first.url))
        with FleetClient(redis_url=first.url) as fleet:
            store.publish_card(null_card())
            stream = fleet.generate("Hello", seed=7, max_tokens=16, idle_timeout=60)
            first.kill()
            worker = ["--model", "null", "--backend", "null", "--null-step-time", "0.005"]
            with LocalStack(tmp_path / "second", worker):
                result = stream.result()
        assert (result.job_id, result.text) == (stream.job_id, 'zF E;@l9!Uhk= 4"')
        store.close_connections()


def null_card():
    return ModelCard(
        name="null", max_model_len=4096, vocab_size=259, max_queue_depth=10,
        fingerprint=Fingerprint(weights="null", tokenizer="bytes", dtype="none", backend="null", version="0"),
    )  # fmt: skip
