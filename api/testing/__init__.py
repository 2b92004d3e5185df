"""Fakes for tests of services: a fleet in this process, without Redis, workers or a model.

::

    fleet = InMemoryFleet(reply=lambda request: "Hello back")
    assert fleet.generate("Hello").text() == "Hello back"

Requests are checked by the same rules and streams end in the same ways as those of the real clients. Only the
tokens are made up: each word of the reply is one.
"""

from __future__ import annotations

from pagefleet.api.testing.async_fleet import AsyncInMemoryFleet
from pagefleet.api.testing.fake_model import Reply, fake_card
from pagefleet.api.testing.fleet import InMemoryFleet

__all__ = ["AsyncInMemoryFleet", "InMemoryFleet", "Reply", "fake_card"]
