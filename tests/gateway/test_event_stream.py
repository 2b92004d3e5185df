"""EventStream: what becomes of the jobs when relaying them breaks."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from pagefleet.api.config.settings import GatewaySettings
from pagefleet.api.gateway.answers.event_stream import EventStream
from pagefleet.api.gateway.http.asgi_extensions import ABORT
from pagefleet.api.gateway.metrics import GatewayMetrics


class Broken:
    can_return = False

    async def run(self, write):
        await write(b": one\n\n")
        raise ExceptionGroup("tasks", [RuntimeError("a fault of ours")])


def test_a_relay_that_breaks_leaves_no_job_behind_and_no_end():
    happened, sent = [], []

    async def call():
        async def note(what):
            happened.append(what)

        async def receive():
            await asyncio.Event().wait()

        async def send(message):
            sent.append(message)

        gateway = SimpleNamespace(
            settings=GatewaySettings(),
            metrics=GatewayMetrics(),
            leaving=asyncio.get_running_loop().create_future(),
        )
        stream = EventStream(
            gateway, Broken(), {}, lambda within_s: note(f"gone for {within_s:g} s"), lambda: note("end")
        )
        await stream({"extensions": {ABORT: lambda: happened.append("abort")}}, receive, send)

    with pytest.raises(ExceptionGroup):
        asyncio.run(call())
    assert happened == ["gone for 0 s", "abort", "end"]
    assert all(message.get("more_body", True) for message in sent), "the client must not take it for an end"
