"""Fixtures of all tests: a clean environment, a real Valkey server, and a real fleet without a model."""

from __future__ import annotations

import os
import signal
from pathlib import Path

# torch reads it at import. Waiting threads sleep instead of spinning, because the tests share their cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
from reaper import reaper

from pagefleet.api import FleetClient, FleetSettings
from pagefleet.api.contract import keys
from pagefleet.api.contract.errors import ConfigurationError
from pagefleet.api.contract.messages import Fingerprint, ModelCard
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.workers.local.local_stack import LocalStack
from pagefleet.workers.local.redis_server import RedisServer, find_server_binary

NULL_WORKER = ["--model", "null", "--backend", "null", "--null-step-time", "0.005", "--null-recites"]


# All tests of a file run in one process (make pytest), so the longest files start first.
LONGEST_FILES = (
    "engine/test_llm.py",
    "workers/test_model_fleet.py",
    "workers/test_mixed_fleet.py",
    "workers/test_takeover.py",
    "garbage/test_stored_garbage.py",
    "security/test_acl.py",
    "gateway/test_page.py",
    "protocol/test_protocol.py",
    "api/test_submit_outcomes.py",
    "gateway/test_jobs.py",
    "gateway/test_tools.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {str(Path(__file__).parent / name): rank for rank, name in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: ranks.get(str(item.path), len(ranks)))


UNREACHABLE = Path(__file__).parents[1] / "build" / "unreachable"
"""The make targets of programs have a file here if they could not be fetched, because a registry failed."""


def missing_service(reason: str, target: str = "") -> None:
    """Skip the test if a service is missing; in CI, fail it.

    ``target`` is the make target that installs the service: CI does not fail if a registry did.
    """
    if os.environ.get("CI") and not (target and (UNREACHABLE / target).exists()):
        pytest.fail(f"CI must have this service: {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def give_up():
    """:func:`missing_service`, for fixtures in the folders below."""
    return missing_service


@pytest.fixture(scope="session", autouse=True)
def no_process_is_left():
    with reaper():
        yield


@pytest.fixture(scope="session", autouse=True)
def own_environment(no_process_is_left, tmp_path_factory):
    """Hide the developer's Redis, settings and running stack from the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name == "REDIS_URL" or name.startswith("PAGEFLEET_"):
                patch.delenv(name)
        patch.setenv("PAGEFLEET_HOME", str(tmp_path_factory.mktemp("home")))
        # Read no settings files: the repository, where tests run, may contain a .env file for compose.
        patch.setenv("PAGEFLEET_CONFIG", "")
        # Background jobs of a shell ignore Ctrl-C, and the processes that a test starts would inherit that.
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        yield


@pytest.fixture(autouse=True)
def own_home(monkeypatch, tmp_path):
    """Hide the stack that one test announces from the next test."""
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.setenv("PAGEFLEET_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="session")
def server_binary() -> Path:
    try:
        return find_server_binary()
    except ConfigurationError as error:
        missing_service(error.message)
        raise


@pytest.fixture(scope="session")
def redis_server(server_binary, tmp_path_factory):
    """A server without a fleet. :func:`store` empties it for each test."""
    with RedisServer(tmp_path_factory.mktemp("plain") / "redis") as server:
        yield server


@pytest.fixture
def store(redis_server):
    """A JobStore on an empty server."""
    store = JobStore(FleetSettings(redis_url=redis_server.url))
    store.redis.flushall()
    yield store
    store.close_connections()


@pytest.fixture(scope="session")
def null_stack(server_binary, own_environment, tmp_path_factory):
    """A Redis server and one worker with the null engine (5 ms per token), shared by all end-to-end tests."""
    with LocalStack(tmp_path_factory.mktemp("stack"), NULL_WORKER) as stack:
        yield stack


@pytest.fixture
def fleet(null_stack):
    with FleetClient(redis_url=null_stack.redis_url) as client:
        yield client


@pytest.fixture
def ghost(null_stack):
    """The name of a model with a card but without a worker. Its jobs wait."""
    store = JobStore(FleetSettings(redis_url=null_stack.redis_url))
    fingerprint = Fingerprint(weights="w", tokenizer="t", dtype="none", backend="null", version="0")
    card = ModelCard(
        name="ghost", aliases=["spirit"], max_model_len=4096, vocab_size=259, max_queue_depth=3,
        fingerprint=fingerprint,
    )  # fmt: skip
    store.publish_card(card)
    yield card.name
    store.remove_card(card.name)
    for lane in keys.LANES:
        ledger = keys.open_jobs(keys.queue(card.name, lane))
        jobs = store.redis.zrange(ledger, 0, -1)
        store.redis.delete(ledger, *map(keys.job, jobs), *store.redis.keys(f"{keys.queue(card.name, lane)}*"))
    store.close_connections()
