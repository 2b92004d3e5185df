"""Flower over a real fleet, and a real browser in front of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "security"))

from flower_page import USER
from watched_fleet import watched_fleet

from ops.flower_browser import find_browser, flower_browser
from pagefleet.api import FleetClient


@pytest.fixture(scope="session")
def watched(server_binary, own_environment, tmp_path_factory):
    with watched_fleet(tmp_path_factory.mktemp("watched")) as fleet:
        yield fleet


@pytest.fixture
def producer(watched):
    with FleetClient(redis_url=watched.guarded.url_of("producer")) as fleet:
        yield fleet


@pytest.fixture
def browser(give_up, watched):
    """A window of Flower, signed in."""
    program = find_browser()
    if program is None:
        give_up("Chromium is not installed: run make browser, or install the package chromium", "browser")
    user, _, password = USER.partition(":")
    with flower_browser(f"http://127.0.0.1:{watched.page.port}", user, password, browser=program) as window:
        yield window
