"""A fleet of its own for the garbage: nobody else's tests should meet it."""

from __future__ import annotations

import pytest

from pagefleet.api import FleetClient
from pagefleet.workers.local.local_stack import LocalStack

WORKER = ["--model", "null", "--backend", "null", "--null-step-time", "0.005", "--lease-seconds", "1"]


@pytest.fixture(scope="module")
def stack(server_binary, own_environment, tmp_path_factory):
    with LocalStack(
        tmp_path_factory.mktemp("garbage"), [*WORKER, "--log-level", "DEBUG"], drain_s=0.0
    ) as stack:
        yield stack


@pytest.fixture(scope="module")
def fleet(stack):
    with FleetClient(redis_url=stack.redis_url) as client:
        yield client
