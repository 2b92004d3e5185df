"""GatewayMetrics. Labels never contain tenants, models or paths, because clients choose them."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class GatewayMetrics:
    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "pagefleet_gateway_requests",
            "Requests answered. Status 499: the client disconnected first.",
            ["route", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "pagefleet_gateway_request_seconds",
            "Time from the header of a request to the end of its response.",
            ["route"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.streams = Gauge("pagefleet_gateway_streams", "Open streams.", registry=self.registry)

    def text(self) -> bytes:
        return generate_latest(self.registry)
