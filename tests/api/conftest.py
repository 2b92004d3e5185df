"""Fixtures of the producer's tests; the servers and stacks shared by all tests are one folder up."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from pagefleet.api.client import stream_loop

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def blocking():
    """Makes an asynchronous fleet that is called without asyncio."""
    from blocking import Blocking

    with asyncio.Runner() as runner:
        yield lambda fleet: Blocking(fleet, runner.get_loop())


@pytest.fixture
def live_only(monkeypatch):
    """A stream reads the log after a minute of silence only, so what arrives within seconds came live."""
    monkeypatch.setattr(stream_loop, "SILENCE_S", 60.0)
    return 15.0


@pytest.fixture
def ear(store):
    """Hears everything that is published."""
    from job_store_helpers import Ear

    ear = Ear(store)
    yield ear
    ear.close()
