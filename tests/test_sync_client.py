"""The generated synchronous client is current, and every function of it has its asynchronous twin."""

from __future__ import annotations

from ops import sync_client


def test_the_generated_files_are_current():
    assert sync_client.outdated() == [], "run `make sync-client` and commit what it writes"
