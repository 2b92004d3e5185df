"""docs/metrics.md names every metric that there is, and none that there isn't."""

from __future__ import annotations

import re

import pytest
from documented import METRICS_DOC, documented_metrics, existing_metrics
from harness import leave, make_worker
from prometheus_client import CollectorRegistry

from pagefleet.api.exporter import FleetCollector


@pytest.fixture
def existing(store):
    """Of a worker and of the exporter, together."""
    worker = make_worker(store, "w1")
    worker.start()
    registry = CollectorRegistry()
    registry.register(FleetCollector(store))
    yield {**existing_metrics(worker.metrics.registry), **existing_metrics(registry)}
    leave(worker)


def test_the_table_is_what_there_is(existing):
    documented = documented_metrics(METRICS_DOC.read_text())
    assert sorted(documented) == sorted(existing)
    for name, row in documented.items():
        there = existing[name]
        right = f"| `{name}` | {there.kind} | {there.labels} | ? | {there.meaning} |"
        assert row._replace(vllm="") == there, right


def test_each_stands_beside_vllms():
    for name, row in documented_metrics(METRICS_DOC.read_text()).items():
        assert re.fullmatch(r"—|`vllm:\w+`", row.vllm), name
