"""The fleet under test: one Valkey, some workers, a proxy between each worker and Valkey."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Self, TypeVar

from ops.chaos.proxy import Proxy
from pagefleet.api import FleetSettings
from pagefleet.api.config.settings import GatewaySettings
from pagefleet.api.contract import keys
from pagefleet.api.contract.messages import WorkerStatus
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.workers.local.gateway_process import GatewayProcess
from pagefleet.workers.local.local_stack import WorkerProcess
from pagefleet.workers.local.redis_server import RedisServer
from pagefleet.workers.threads.outage_retry import OutageRetry
from pagefleet.workers.threads.polling import wait_until

T = TypeVar("T")

_ENGINES: Final = {
    "null": ["--model", "null", "--backend", "null", "--null-step-time", "0.01"],
    "model": ["--model", "smollm2-135m-instruct", "--dtype", "float64", "--num-blocks", "512"],
}
_MODELS: Final = {"null": "null", "model": "smollm2-135m-instruct"}
_START_TIMEOUT_S: Final = 300.0
_NO_SERVER: Final = "Error: No answer from Redis"


class Resources(NamedTuple):
    """What a process holds of the machine."""

    num_threads: int
    num_connections: int
    resident_mb: float


class ChaosFleet:
    """Workers are known by their index; a restarted one keeps it, with a new process and worker id.
    Gateways are known by theirs, and keep their addresses."""

    def __init__(self, engine: str, home: Path, num_workers: int, num_gateways: int = 0) -> None:
        self.engine = engine
        self.model = _MODELS[engine]
        self.home = home
        self.server = RedisServer(home / "redis")
        self.proxies = [Proxy(self.server.port) for _ in range(num_workers)]
        share = max(1, (os.cpu_count() or 1) // num_workers)
        arguments = [*_ENGINES[engine], "--drain-seconds", "0", "--num-threads", str(share)]
        self.workers = [
            WorkerProcess(
                proxy.url,
                arguments,
                log_file=home / f"worker-{index}.log",
                environment={"PAGEFLEET_DEBUG_WEDGE": "1"},
            )
            for index, proxy in enumerate(self.proxies)
        ]
        self.gateways: list[GatewayProcess] = []
        while len(self.gateways) < num_gateways:
            log_file = home / f"gateway-{len(self.gateways)}.log"
            gateway = GatewayProcess(self.server.url, GatewaySettings(), 0, log_file=log_file)
            # Neither listens yet, so that both may have been given the same port.
            if gateway.port not in [other.port for other in self.gateways]:
                self.gateways.append(gateway)
        self.store = JobStore(FleetSettings(redis_url=self.server.url))
        self.retry = OutageRetry()
        self.worker_ids: list[str] = []

    def start(self) -> Self:
        try:
            self.server.start()
            for proxy, worker in zip(self.proxies, self.workers, strict=True):
                proxy.start()
                worker.start()
            for gateway in self.gateways:
                gateway.start()
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        started = [child for child in (*self.gateways, *self.workers) if child.is_started]
        for child in started:
            child.terminate()
        for child in started:
            child.wait(15.0)
        for proxy in self.proxies:
            proxy.stop()
        self.store.close_connections()
        self.server.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def queues(self) -> list[str]:
        return [name for lane in keys.LANES for name in keys.queues(self.model, lane)]

    def statuses(self) -> list[WorkerStatus | None]:
        """Return each worker's status, or None for a worker without a lease."""
        by_pid = {status.pid: status for status in self.retry(self.store.workers)}
        return [by_pid.get(worker.pid) for worker in self.workers]

    def reader_arguments(self, style: str) -> list[str]:
        """Return the module of a client and its arguments."""
        if style == "http":
            return ["ops.chaos.http_reader", ",".join(gateway.url for gateway in self.gateways), self.model]
        return ["ops.chaos.reader", self.server.url, style]

    def wait_ready(self) -> None:
        """Until every worker holds a lease and every gateway answers.

        Raises:
            TimeoutError: also for a worker that has ended.
            GatewayStartError.
        """

        def settled() -> bool:
            self.start_unreached()
            return all(self.statuses()) or any(worker.exit_status is not None for worker in self.workers)

        if not wait_until(settled, _START_TIMEOUT_S, poll_s=0.05) or not all(self.statuses()):
            ends = [worker.exit_status for worker in self.workers]
            raise TimeoutError(f"not all workers are ready; exit statuses {ends}; logs in {self.home}")
        for gateway in self.gateways:
            gateway.wait_ready()
        self.worker_ids = [status.worker_id for status in self.statuses() if status is not None]

    def start_unreached(self) -> None:
        """As a supervisor does: a worker whose start fell into a cut network has ended, and starts again."""
        for worker in self.workers:
            if worker.exit_status == 1 and worker.read_log()[-1].startswith(_NO_SERVER):
                worker.start()

    def hashes(self, job_ids: Iterable[str], *fields: str) -> dict[str, list[Any]]:
        """Some fields of some jobs' hashes, in one round trip."""
        wanted = list(job_ids)

        def read() -> list[Any]:
            pipeline = self.store.redis.pipeline(transaction=False)
            for job_id in wanted:
                pipeline.hmget(keys.job(job_id), *fields)
            return list(pipeline.execute())

        return dict(zip(wanted, self._on_server(read), strict=True))

    def jobs_of(self, worker_id: str, job_ids: Iterable[str]) -> list[str]:
        """Those of the jobs that this worker runs."""
        owners = self.hashes(job_ids, "state", "owner")
        return [job_id for job_id, (state, owner) in owners.items() if state == "R" and owner == worker_id]

    def num_unacked(self, worker_id: str) -> int:
        return int(self._on_server(lambda: self.store.redis.hlen(keys.unacked(worker_id)["unacked_key"])))

    def num_server_connections(self) -> int:
        return len(self._on_server(self.store.redis.client_list))

    def resources(self, index: int) -> Resources:
        num_threads, resident_mb = read_process(self.workers[index].pid)
        return Resources(num_threads, self.proxies[index].num_connections, resident_mb)

    def server_resident_mb(self) -> float:
        return read_process(self.server.pid)[1]

    def _on_server(self, call: Any) -> Any:
        from pagefleet.api.protocol.connection import redis_errors

        def guarded() -> Any:
            with redis_errors(self.server.url):
                return call()

        return self.retry(guarded)


def read_process(pid: int) -> tuple[int, float]:
    """Threads and resident memory in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(fields["Threads"]), int(fields["VmRSS"].split()[0]) / 1024


def wait_all_ended(logs: Sequence[Any], timeout_s: float) -> bool:
    return wait_until(lambda: all(log.ended for log in logs), timeout_s, poll_s=0.02)


def sleep_until(moment: float) -> None:
    """Faults last for a time, not until a condition: this is the suite's one way to let time pass."""
    time.sleep(max(0.0, moment - time.monotonic()))
