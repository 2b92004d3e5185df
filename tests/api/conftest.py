"""Fixtures of the producer's tests; the servers and stacks shared by all tests are one folder up."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def ear(store):
    """Hears everything that is published."""
    from job_store_helpers import Ear

    ear = Ear(store)
    yield ear
    ear.close()
