"""Gateways over the null fleet that all tests share: real processes, asked over real sockets."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import httpx
import openai
import pytest
import trustme

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))

from pagefleet.api.config.settings import FleetSettings, GatewaySettings
from pagefleet.api.gateway.access.key_file import KeyFile
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.workers.local.gateway_process import GatewayProcess
from pagefleet.workers.local.local_stack import LocalStack

NULL = ["--model", "null", "--backend", "null", "--null-step-time", "0.005", "--lease-seconds", "1"]


@pytest.fixture(scope="session")
def one_authority(tmp_path_factory):
    """A file with one certificate authority, which has signed nothing."""
    path = tmp_path_factory.mktemp("authority") / "ca.pem"
    trustme.CA().cert_pem.write_to_path(path)
    return path


@pytest.fixture(autouse=True)
def cheap_http_clients(monkeypatch, one_authority):
    """Let each new HTTP client read one authority in 1 ms instead of the usual list in 25 ms."""
    monkeypatch.setenv("SSL_CERT_FILE", str(one_authority))


@pytest.fixture(scope="session")
def start_gateway(null_stack, tmp_path_factory):
    """Starts further gateways, with variables of their own; all end with the session."""
    started = []

    def start(redis_url=None, **variables):
        folder = tmp_path_factory.mktemp("gateway")
        environment = {f"PAGEFLEET_GATEWAY_{name.upper()}": str(value) for name, value in variables.items()}
        process = GatewayProcess(
            redis_url or null_stack.redis_url, GatewaySettings(), 0,
            log_file=folder / "gateway.log", environment=environment,
        )  # fmt: skip
        started.append(process)
        return process.start().wait_ready()

    yield start
    for process in started:
        process.terminate()
    for process in started:
        process.wait(60)


@pytest.fixture(scope="session")
def return_within_s():
    """Shorter than by default: for so long a test waits."""
    return 1.5


@pytest.fixture(scope="session")
def gateway(start_gateway, return_within_s):
    """Without keys."""
    return start_gateway(keep_alive_s=0.3, drain_s=1, return_within_s=return_within_s)


@pytest.fixture(scope="session")
def narrow(start_gateway):
    """With small limits, and strict."""
    return start_gateway(
        strict=1, timeout_s=0.3, max_body_bytes=1000, body_timeout_s=0.3, max_header_bytes=8192,
        header_timeout_s=0.5, max_connections=20, send_timeout_s=0.5, drain_s=0,
    )  # fmt: skip


@pytest.fixture(scope="session")
def key_file(tmp_path_factory):
    return KeyFile(tmp_path_factory.mktemp("keys") / "keys.json")


@pytest.fixture(scope="session")
def guarded_gateway(start_gateway, key_file):
    key_file.add(tenant="nobody")
    return start_gateway(keys_file=key_file.path)


@pytest.fixture
def http(gateway):
    with httpx.Client(base_url=gateway.url, timeout=30) as client:
        yield client


@pytest.fixture
def ai(gateway):
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def jobs(null_stack):
    """What the server knows of jobs."""
    store = JobStore(FleetSettings(redis_url=null_stack.redis_url))
    yield store
    store.close_connections()


@pytest.fixture(scope="module")
def start_fleet(server_binary, tmp_path_factory):
    """A fleet of one's own, for who harms its workers; ends with the module."""
    with contextlib.ExitStack() as stacks:

        def start(num_workers):
            stack = LocalStack(tmp_path_factory.mktemp("fleet"), NULL, num_workers=num_workers, drain_s=0)
            return stacks.enter_context(stack)

        yield start
