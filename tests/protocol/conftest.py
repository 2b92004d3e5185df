"""A server that only this folder uses."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="package")
def script_server(server_binary, tmp_path_factory):
    """The scripts as they are. What it was asked once it remembers, for all tests of this folder."""
    from protocol.script_server import ScriptServer

    from pagefleet.workers.local.redis_server import RedisServer

    with RedisServer(tmp_path_factory.mktemp("protocol") / "redis") as server:
        scripts = ScriptServer(server.url)
        yield scripts
        scripts.disconnect()
