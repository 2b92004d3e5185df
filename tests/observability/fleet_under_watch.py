"""A real fleet, its exporter, and a real Prometheus that scrapes all of it."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import yaml

from pagefleet.api import FleetClient
from pagefleet.api.config.settings import GatewaySettings
from pagefleet.workers.local.gateway_process import GatewayProcess
from pagefleet.workers.local.local_stack import LocalStack
from pagefleet.workers.local.ports import free_port
from pagefleet.workers.threads.polling import wait_until

OPS = Path(__file__).parents[2] / "ops"
NULL = ["--model", "null", "--backend", "null", "--null-step-time", "0.01", "--lease-seconds", "1"]
WATCHED = [*NULL, "--metrics-port", "0"]
_URL = re.compile(r"http://127\.0\.0\.1:(\d+)/metrics")


class ChildProcess:
    """A program with its output in a file, ended by SIGTERM."""

    def __init__(self, command, log_file):
        self.log_file = log_file
        with log_file.open("wb") as log:
            self._process = subprocess.Popen([*map(str, command)], stdout=log, stderr=log)

    def stop(self):
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)

    def metrics_port(self, timeout_s=60):
        return metrics_port(self.log_file, timeout_s)


def metrics_port(log_file, timeout_s=60):
    """What a process told in its start-up lines; the last one, where it was started again."""
    assert wait_until(lambda: _URL.search(log_file.read_text()), timeout_s), log_file.read_text()
    return int(_URL.findall(log_file.read_text())[-1])


class FleetUnderWatch:
    """Two workers, an exporter and Prometheus with the rules of ``ops/prometheus``."""

    def __init__(self, prometheus, folder):
        self._prometheus = prometheus
        self._folder = folder
        self._stack = LocalStack(folder, WATCHED, num_workers=2, drain_s=0.0)
        self._port = free_port()
        self._children = []
        self._gateway = None

    def __enter__(self):
        self._stack.start()
        try:
            self._start_watch()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for child in reversed(self._children):
            child.stop()
        if self._gateway is not None:
            self._gateway.terminate()
            self._gateway.wait(60)
        self._stack.stop()

    def _start_watch(self):
        command = [sys.executable, "-m", "pagefleet.api.cli.main", "exporter", "--port", "0"]
        exporter = ChildProcess(
            [*command, "--redis-url", self._stack.redis_url], self._folder / "exporter.log"
        )
        self._children.append(exporter)
        self._gateway = GatewayProcess(
            self._stack.redis_url, GatewaySettings(), 0, log_file=self._folder / "gateway.log"
        ).start()
        self._gateway.wait_ready()
        workers = [metrics_port(worker.log_file) for worker in self._stack.workers]
        config = self._folder / "prometheus.yml"
        config.write_text(yaml.safe_dump(self._config(workers, exporter.metrics_port())))
        command = [
            self._prometheus,
            f"--config.file={config}",
            f"--storage.tsdb.path={self._folder / 'tsdb'}",
        ]
        command.append(f"--web.listen-address=127.0.0.1:{self._port}")
        self._children.append(ChildProcess(command, self._folder / "prometheus.log"))
        assert wait_until(self._is_ready, 60), (self._folder / "prometheus.log").read_text()

    def _config(self, worker_ports, exporter_port):
        gateway_port = int(self._gateway.url.rpartition(":")[2])
        return local_config(
            {
                "pagefleet-worker": worker_ports,
                "pagefleet-fleet": [exporter_port],
                "pagefleet-gateway": [gateway_port],
            }
        )

    def _is_ready(self):
        """It answers, and has scraped all four."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/-/ready", timeout=10):
                return self.query("count(up == 1)") == [4.0]
        except OSError:
            return False

    def query(self, expression):
        """The values now, one for each series."""
        url = f"http://127.0.0.1:{self._port}/api/v1/query?" + urllib.parse.urlencode({"query": expression})
        try:
            with urllib.request.urlopen(url, timeout=10) as reply:
                result = json.load(reply)["data"]["result"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{expression}: {error.read().decode()}") from error
        return [float(series["value"][1]) for series in result]

    def work(self):
        """Jobs of both lanes, one takeover, some of each end."""
        with FleetClient(redis_url=self._stack.redis_url) as fleet:
            streams = [
                fleet.generate("x" * 100, max_tokens=300, seed=index, lane=lane)
                for index in range(12)
                for lane in ("interactive", "batch")
            ]
            for stream in streams:
                next(stream)
            self._stack.workers[0].send_signal(signal.SIGKILL)
            streams[0].cancel()
            results = [stream.result() for stream in streams]
        assert max(result.attempts for result in results) == 2
        self._ask_the_gateway()
        return results

    def _ask_the_gateway(self):
        for path in ("/v1/models", "/v1/models/nobody's", "/v1/models"):
            with (
                contextlib.suppress(urllib.error.HTTPError),
                urllib.request.urlopen(self._gateway.url + path),
            ):
                pass


def local_config(ports):
    """The shipped configuration, with this machine's ports in the place of the containers' names."""
    config = yaml.safe_load((OPS / "prometheus" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(OPS / "prometheus" / name) for name in config["rule_files"]]
    config["scrape_configs"] = [
        {
            "job_name": scrape["job_name"],
            "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in ports[scrape["job_name"]]]}],
        }
        for scrape in config["scrape_configs"]
    ]
    return config
