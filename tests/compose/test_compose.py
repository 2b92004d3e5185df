"""The stack of compose.yaml as a user runs it: the two commands of the README, then what goes wrong.

The tests are told in order and share one stack.
"""

from __future__ import annotations

import base64
import json
import signal
import urllib.error
import urllib.request
from collections import Counter
from urllib.parse import urlencode

import pytest

from pagefleet.api import FleetClient
from pagefleet.engine.execution.null_executor import null_token
from pagefleet.workers.threads.polling import wait_until

pytestmark = pytest.mark.containers

PRODUCER_BYTES = 250e6


def expected(seed, count):
    return [null_token(seed, 0, position) for position in range(count)]


def start_streams(fleet, count, max_tokens):
    """Jobs with seeds of their own, each of which has streamed something."""
    streams = [fleet.generate("x", model="null", max_tokens=max_tokens, seed=seed) for seed in range(count)]
    for stream in streams:
        next(stream)
    return streams


def assert_exact(streams, num_tokens):
    for seed, stream in enumerate(streams):
        assert stream.result().token_ids == expected(seed, num_tokens)


def ask_gateway(project, key=None, **options):
    key = key or project.read("gateway", "/secrets/gateway/key")
    body = json.dumps({"model": "null", "prompt": "x", "seed": 1, **options}).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    url = f"http://127.0.0.1:{project.ports['GATEWAY_PORT']}/v1/completions"
    return urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=30)


def stream_texts(answer):
    for line in answer:
        if line.startswith(b"data: {"):
            yield json.loads(line[6:])["choices"][0]["text"]


class TestImages:
    def test_the_producer_s_is_small_and_has_no_torch(self, project):
        assert project.image_bytes("producer") < PRODUCER_BYTES
        project.python("producer", "import importlib.util as u; assert u.find_spec('torch') is None")

    def test_the_worker_s_has_no_cuda(self, project):
        project.python("worker", "import torch; assert torch.version.cuda is None")


class TestTheReadme:
    def test_two_commands_to_the_first_answer(self, project):
        project.compose("up", "--detach", "--wait", "--no-build")
        answer = project.client("generate", "Once upon a time", "--max-tokens", "16", "--temperature", "0")
        assert len(answer.split()) >= 8

    def test_everything_is_locked_up(self, project):
        password = project.read("worker", "/secrets/worker/redis_password")
        assert len(password) >= 32
        for service in ("redis", "worker", "gateway", "flower", "exporter", "prometheus"):
            (container,) = project.containers(service)
            seen = project.inspect(container)
            assert seen["HostConfig"]["ReadonlyRootfs"], service
            assert seen["Config"]["User"] not in ("", "root", "0"), service
            published = [entry for port in seen["NetworkSettings"]["Ports"].values() for entry in port or []]
            assert {entry["HostIp"] for entry in published} <= {"127.0.0.1"}, service
            assert password not in json.dumps(seen), service
        assert password not in project.compose("logs")


@pytest.fixture(scope="class")
def fleet(project):
    """A producer on this machine, over the published port; the workers make their tokens up from here on."""
    project.set(
        PAGEFLEET_MODEL="null",
        PAGEFLEET_BACKEND="null",
        PAGEFLEET_NULL_STEP_TIME_S=0.02,
        PAGEFLEET_DRAIN_S=2,
        WORKER_STOP_GRACE="20s",
    )
    project.compose("up", "--detach", "--wait", "--no-build", "--scale", "worker=2")
    secret = "/secrets/producer/redis_password"
    password = project.compose("run", "--rm", "--entrypoint", "cat", "client", secret).strip()
    url = f"redis://producer:{password}@127.0.0.1:{project.ports['REDIS_PORT']}/0"
    with FleetClient(redis_url=url) as fleet:
        assert wait_until(lambda: num_workers(fleet) == 2, 30, 0.1)
        yield fleet


def num_workers(fleet):
    return sum(worker.model == "null" for worker in fleet.status().workers)


class Prometheus:
    """Its HTTP API."""

    def __init__(self, project):
        self._root = f"http://127.0.0.1:{project.ports['PROMETHEUS_PORT']}/api/v1"

    def get(self, path, **parameters):
        with urllib.request.urlopen(f"{self._root}/{path}?{urlencode(parameters)}", timeout=10) as answer:
            return json.load(answer)["data"]

    def num_up(self):
        """By job, how many of its targets are."""
        return Counter(
            target["labels"]["job"]
            for target in self.get("targets")["activeTargets"]
            if target["health"] == "up"
        )

    def query(self, expression):
        return [float(series["value"][1]) for series in self.get("query", query=expression)["result"]]


class TestFaults:
    def test_prometheus_sees_two_workers_the_gateway_and_the_fleet(self, project, fleet):
        prometheus = Prometheus(project)
        everything_is_up = {"pagefleet-worker": 2, "pagefleet-fleet": 1, "pagefleet-gateway": 1}
        assert wait_until(lambda: prometheus.num_up() == everything_is_up, 60, 0.5)
        before = sum(prometheus.query('pagefleet_generation_tokens_total{model="null"}'))
        assert len(fleet.generate("x", model="null", max_tokens=40).result().token_ids) == 40

        def generated():
            return sum(prometheus.query('pagefleet_generation_tokens_total{model="null"}')) - before

        assert wait_until(lambda: generated() == 40, 30, 0.5)
        assert prometheus.query('pagefleet_fleet_workers{model="null"}') == [2]
        groups = prometheus.get("rules")["groups"]
        assert groups
        assert {rule["health"] for group in groups for rule in group["rules"]} <= {"ok", "unknown"}

    def test_the_gateway_answers_who_has_its_key(self, project, fleet):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            ask_gateway(project, "no-key", max_tokens=5)
        with ask_gateway(project, max_tokens=5) as answer:
            text = json.load(answer)["choices"][0]["text"]
        assert text == "".join(map(chr, expected(1, 5)))

    def test_a_worker_killed_behind_the_gateway(self, project, fleet):
        """Its client notices a pause."""
        with ask_gateway(project, max_tokens=300, stream=True) as answer:
            job_id = answer.headers["x-pagefleet-job"]
            texts = stream_texts(answer)
            begun = [next(texts) for _ in range(10)]
            (owner,) = [job.worker_id for job in fleet.status().running if job.job_id == job_id]
            # A container's host name is the beginning of its id.
            (victim,) = [
                each for each in project.containers("worker") if each.startswith(owner.split("-")[0])
            ]
            project.signal(victim, signal.SIGKILL)
            assert "".join([*begun, *texts]) == "".join(map(chr, expected(1, 300)))
        assert wait_until(lambda: num_workers(fleet) == 2, 30, 0.1)

    def test_flower_shows_the_job(self, project, fleet):
        stream = fleet.generate("sentinel-prompt", model="null", max_tokens=5, seed=1)
        assert stream.result().token_ids == expected(1, 5)
        user = project.read("flower", "/secrets/flower/users")
        root = f"http://127.0.0.1:{project.ports['FLOWER_PORT']}"
        headers = {"Authorization": "Basic " + base64.b64encode(user.encode()).decode()}

        def task():
            request = urllib.request.Request(f"{root}/api/task/info/{stream.job_id}", headers=headers)
            try:
                with urllib.request.urlopen(request, timeout=10) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                with error:
                    return {}

        assert wait_until(lambda: task().get("state") == "SUCCESS", 20, 0.1)
        assert task()["name"] == "pagefleet.generate"
        assert task()["worker"].startswith("null@")
        assert "sentinel-prompt" not in json.dumps(task())
        with pytest.raises(urllib.error.HTTPError, match="401") as refused:
            urllib.request.urlopen(root, timeout=10)
        refused.value.close()

    def test_a_worker_killed_in_mid_stream(self, project, fleet):
        streams = start_streams(fleet, 16, 300)
        victim = project.containers("worker")[0]
        num_restarts = project.inspect(victim)["RestartCount"]
        project.signal(victim, signal.SIGKILL)
        assert_exact(streams, 300)
        assert max(stream.result().attempts for stream in streams) == 2
        # Docker starts it again.
        assert wait_until(lambda: project.inspect(victim)["RestartCount"] == num_restarts + 1, 20, 0.2)
        assert wait_until(lambda: num_workers(fleet) == 2, 30, 0.1)

    def test_a_stuck_worker_is_unhealthy_though_its_process_lives(self, project, fleet):
        victim = project.containers("worker")[0]

        def health():
            return project.inspect(victim)["State"]["Health"]["Status"]

        assert wait_until(lambda: health() == "healthy", 20, 0.2)
        project.signal(victim, signal.SIGSTOP)
        assert wait_until(lambda: health() == "unhealthy", 40, 0.2)
        project.signal(victim, signal.SIGCONT)
        assert wait_until(lambda: health() == "healthy", 20, 0.2)

    def test_redis_restarts_in_mid_stream(self, project, fleet):
        streams = start_streams(fleet, 8, 300)
        project.compose("restart", "redis")
        assert_exact(streams, 300)
        assert wait_until(lambda: num_workers(fleet) == 2, 30, 0.1)

    def test_stop_drains_and_hands_on(self, project, fleet):
        short = start_streams(fleet, 8, 60)
        long = start_streams(fleet, 8, 600)
        workers = project.containers("worker")
        project.compose("stop", "worker")
        assert [project.inspect(worker)["State"]["ExitCode"] for worker in workers] == [0, 0]
        # What could finish in time did; the rest is in the queue, with what it has.
        assert_exact(short, 60)
        assert {stream.result().attempts for stream in short} == {1}
        assert fleet.status().running == []
        project.compose("start", "worker")
        assert_exact(long, 600)
        assert {stream.result().attempts for stream in long} == {2}


class TestTheEnd:
    def test_down_leaves_nothing_behind(self, project):
        project.down()
        assert project.left_behind() == {"containers": "", "volumes": "", "networks": ""}
