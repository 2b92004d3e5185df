"""LocalStack: what a service that uses `pagefleet up` relies on from one start to the next."""

from __future__ import annotations

import os
import socket
import stat

import pytest

from pagefleet.api import FleetClient, FleetSettings
from pagefleet.api.contract.errors import ConfigurationError
from pagefleet.workers.local.local_stack import LocalStack
from pagefleet.workers.local.server_endpoint import ServerEndpoint

NULL = ["--model", "null", "--backend", "null", "--null-step-time", "0.02"]


def test_a_client_that_waits_goes_on_with_the_next_start(server_binary, tmp_path):
    with LocalStack(tmp_path, NULL, drain_s=0.0) as stack, FleetClient(redis_url=stack.redis_url) as fleet:
        stack.write_stack_file(FleetSettings(home=tmp_path).stack_file)
        whole = fleet.generate("Hello", seed=7, max_tokens=100).text()
        stream = fleet.generate("Hello", seed=7, max_tokens=100, idle_timeout=60)
        text = next(stream).text
        stack.stop()
        with LocalStack(tmp_path, NULL, drain_s=0.0) as again:
            assert again.redis_url == stack.redis_url
            assert text
            assert whole.startswith(text)
            assert stream.text() == whole
    for name in ("redis_url", "stack.json"):
        assert stat.S_IMODE(os.stat(tmp_path / name).st_mode) == 0o600


def test_a_port_that_something_else_has_is_named_and_nothing_starts(tmp_path):
    endpoint = ServerEndpoint.kept_in(tmp_path)
    with socket.create_server(("127.0.0.1", endpoint.port)):
        stack = LocalStack(tmp_path, NULL)
        with pytest.raises(
            ConfigurationError, match=f"Port {endpoint.port} of 127.0.0.1 is used by"
        ) as error:
            stack.start()
    assert f"pid {os.getpid()}" in str(error.value)
    assert str(endpoint.file) in str(error.value)
    assert not stack.workers[0].is_started


@pytest.mark.parametrize(
    "content",
    ["", "nonsense", "redis://127.0.0.1:7000/0", "redis://:x@example.com:7000/0", "redis://:x@127.0.0.1:z/0"],
)
def test_a_broken_file_is_named(tmp_path, content):
    (tmp_path / "redis_url").write_text(content)
    with pytest.raises(ConfigurationError, match="redis_url"):
        ServerEndpoint.kept_in(tmp_path)
