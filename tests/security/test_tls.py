"""rediss://: every connection checks the server's certificate, and a whole job runs over it."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest
from tls import Authority, TlsFront

from pagefleet.api import AsyncFleetClient, FleetClient, FleetSettings
from pagefleet.api.broker.celery_app import make_celery
from pagefleet.api.broker.sending import send_message
from pagefleet.api.contract.errors import ConfigurationError, RedisUnavailable
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.engine.execution.null_executor import null_token
from pagefleet.workers.local.local_stack import WorkerProcess, WorkerStartError

NULL = ["--model", "null", "--backend", "null", "--null-step-time", "0.005", "--drain-seconds", "0"]
REFUSED = (
    r"The certificate of Redis at rediss://127\.0\.0\.1:\d+/0 is not trusted: .+; set PAGEFLEET_REDIS_CA to"
)


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def stranger(authority, tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls") / "theirs")


@pytest.fixture
def front(authority, redis_server, store):
    """An empty server behind a certificate that is right."""
    with TlsFront(redis_server.port, *authority.issue("server")) as front:
        yield front


def test_a_job_runs_from_producer_to_worker_and_back(front, authority, tmp_path, monkeypatch):
    monkeypatch.setenv("PAGEFLEET_REDIS_CA", str(authority.ca))
    worker = WorkerProcess(front.url, NULL, log_file=tmp_path / "worker.log").start()
    try:
        worker.wait_ready(60)
        with FleetClient(redis_url=front.url) as fleet:
            result = fleet.generate("x", max_tokens=30, seed=5).result()
            assert result.token_ids == [null_token(5, 0, position) for position in range(30)]
            app = make_celery(fleet.settings)
            assert (
                app.AsyncResult(result.job_id).get(timeout=60)["choices"][0]["token_ids"] == result.token_ids
            )
            app.close()
    finally:
        worker.terminate()
        assert worker.wait(60) == 0


WRONG = {
    "another authority": lambda ours, theirs: theirs.issue("server"),
    "expired": lambda ours, theirs: ours.issue("old", ends=datetime(2020, 1, 2, tzinfo=UTC)),
    "not yet valid": lambda ours, theirs: ours.issue("new", begins=datetime(2099, 1, 1, tzinfo=UTC)),
    "another host": lambda ours, theirs: ours.issue("other", host="redis.example.org"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_certificate_is_refused_in_one_sentence(what, authority, stranger, redis_server, store):
    with TlsFront(redis_server.port, *WRONG[what](authority, stranger)) as front:
        settings = FleetSettings(redis_url=front.url, redis_ca=authority.ca)
        begun_at = time.monotonic()
        with pytest.raises(RedisUnavailable, match=REFUSED):
            FleetClient(settings).models()
        own = JobStore(settings)
        with pytest.raises(RedisUnavailable, match=REFUSED):
            own.cards()
        own.close_connections()
        # The broker's connection and the result backend's are kombu's and Celery's: they check too.
        app = make_celery(settings)
        with pytest.raises(RedisUnavailable, match=r"did not take the job: .*certificate verify failed"):
            send_message(app, "a", "pagefleet.null.interactive", 5)
        with pytest.raises(Exception, match="certificate verify failed"):
            app.backend.client.ping()
        app.close()
        assert time.monotonic() - begun_at < 3 * settings.connect_timeout_s


async def test_an_async_client_refuses_it_too(authority, stranger, redis_server, store):
    with TlsFront(redis_server.port, *stranger.issue("server")) as front:
        settings = FleetSettings(redis_url=front.url, redis_ca=authority.ca)
        with pytest.raises(RedisUnavailable, match=REFUSED):
            async with AsyncFleetClient(settings) as fleet:
                await fleet.models()


def test_the_systems_authorities_do_not_know_ours(front):
    with pytest.raises(RedisUnavailable, match=REFUSED):
        FleetClient(redis_url=front.url).models()


def test_a_worker_with_the_wrong_authority_says_so_and_ends(front, stranger, tmp_path, monkeypatch):
    monkeypatch.setenv("PAGEFLEET_REDIS_CA", str(stranger.ca))
    worker = WorkerProcess(front.url, NULL, log_file=tmp_path / "worker.log").start()
    with pytest.raises((WorkerStartError, RedisUnavailable), match="is not trusted"):
        worker.wait_ready(60)
    assert worker.wait(60) == 1
    assert "is not trusted" in worker.read_log()[-1]


def test_a_server_may_ask_for_the_clients_certificate(authority, redis_server, store):
    certificate, key = authority.issue("client")
    with TlsFront(redis_server.port, *authority.issue("server"), client_ca=authority.ca) as front:
        known = FleetSettings(
            redis_url=front.url, redis_ca=authority.ca, redis_cert=certificate, redis_key=key
        )
        with FleetClient(known) as fleet:
            assert fleet.models() == []
        app = make_celery(known)
        send_message(app, "a", "pagefleet.null.interactive", 5)
        app.close()
        with pytest.raises(RedisUnavailable):
            FleetClient(FleetSettings(redis_url=front.url, redis_ca=authority.ca)).models()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"redis_url": "rediss://host:6379/0?ssl_cert_reqs=none"}, "certificates are always verified"),
        ({"redis_ca": "/nowhere/ca.pem"}, "redis_ca: Path does not point to a file."),
        ({"redis_cert": __file__}, "set both redis_cert and redis_key"),
    ],
)
def test_settings_that_check_nothing_are_refused(given, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        FleetSettings.load(**given)
