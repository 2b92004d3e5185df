"""docs/metrics.md names every metric that there is, and none that there isn't."""

from __future__ import annotations

import re

import pytest
from documented import METRICS_DOC, documented_metrics, existing_metrics
from harness import leave, make_worker
from prometheus_client import CollectorRegistry

from pagefleet.api.gateway.metrics import GatewayMetrics
from pagefleet.api.operate.exporter import FleetCollector


@pytest.fixture
def existing(store):
    """Of a worker, of the exporter and of a gateway, together."""
    worker = make_worker(store, "w1")
    worker.start()
    registry = CollectorRegistry()
    registry.register(FleetCollector(store))
    gateway = GatewayMetrics()
    gateway.requests.labels("/v1/models", "200").inc()
    gateway.seconds.labels("/v1/models").observe(0.1)
    registries = (worker.metrics.registry, registry, gateway.registry)
    yield {name: row for each in registries for name, row in existing_metrics(each).items()}
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
