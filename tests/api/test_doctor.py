"""`pagefleet doctor`: its findings on good and bad servers, its time limits and its exit status."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from click.testing import CliRunner

from pagefleet.api import FleetSettings
from pagefleet.api.cli.main import main
from pagefleet.api.config.extras import pip_command
from pagefleet.api.contract.messages import Fingerprint, WorkerStatus
from pagefleet.api.operate.doctor import fleet, process, runner, server
from pagefleet.api.operate.doctor.finding import CheckGroup, Finding, Level, Target
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.workers.local.redis_server import RedisServer

WITHOUT_TORCH = """
import sys, importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "torch" else real(name, package)
from pagefleet.api.cli.main import main
main(sys.argv[1:], prog_name="pagefleet")
"""


@pytest.fixture
def doctor(monkeypatch):
    """The command without the engine's checks, as on a client's installation."""
    monkeypatch.setattr(runner, "missing_extras", lambda _entry: ["worker"])
    return lambda *arguments: CliRunner().invoke(main, ["doctor", *arguments])


def findings_of(check, target):
    return {finding.check: finding for finding in check(target)}


@pytest.fixture
def target(store):
    return Target(store.settings, store)


class TestAGoodServer:
    def test_everything_is_well_but_there_is_no_worker_and_no_torch(self, store):
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_TORCH, "doctor", "--redis-url", store.settings.url, "--json"],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        report = json.loads(done.stdout)
        levels = {finding["check"]: finding["level"] for finding in report["findings"]}
        assert (report["error"], report["warning"]) == (0, 1)
        assert levels.pop("workers") == "warning"
        assert levels.pop("engine") == "skipped"
        assert set(levels.values()) == {"ok"}
        assert {
            "redis version", "append-only file", "eviction policy", "redis memory", "redis connections",
            "clock", "round trip", "redis rights", "scripts", "open files",
        } <= set(levels)  # fmt: skip

    def test_as_text_each_line_has_a_level_and_the_fix_is_below(self, store, doctor):
        lines = doctor("--redis-url", store.settings.url).output.splitlines()
        (index,) = (i for i, line in enumerate(lines) if line.startswith("warning  workers"))
        assert lines[index + 1].strip() == "→ start a worker: pagefleet worker --model MODEL"
        (engine,) = (line for line in lines if line.startswith("skipped  engine"))
        assert pip_command(["worker"]) in engine
        assert lines[-1] == "0 errors, 1 warning"
        assert not any("\x1b" in line or line != line.rstrip() for line in lines)


class TestABadServer:
    def test_what_would_lose_jobs_is_wrong(self, server_binary, tmp_path):
        options = {
            "appendonly": "no",
            "maxmemory-policy": "allkeys-lru",
            "maxmemory": "200mb",
            "maxclients": "20",
        }
        with RedisServer(tmp_path / "bad", options=options) as bad:
            store = JobStore(FleetSettings(redis_url=bad.url))
            others = [JobStore(store.settings) for _ in range(17)]
            for other in others:
                other.redis.ping()
            found = findings_of(server.configuration, Target(store.settings, store))
            for each in (store, *others):
                each.close_connections()
        assert found["append-only file"].level == "error"
        assert found["append-only file"].fix == "in redis.conf: appendonly yes, appendfsync everysec"
        assert found["eviction policy"].level == "error"
        assert found["redis connections"].level == "warning"

    @pytest.mark.parametrize(
        ("check", "info", "level"),
        [
            (server.version, {"redis_version": "6.2.14"}, "error"),
            (server.version, {"redis_version": "7.2.4", "valkey_version": "8.0.1"}, "ok"),
            (server.version, {}, "skipped"),
            (server.eviction_policy, {"maxmemory": 0, "maxmemory_policy": "allkeys-lfu"}, "warning"),
            (server.server_memory, {"used_memory": 96, "maxmemory": 100}, "error"),
            (server.server_memory, {"used_memory": 85, "maxmemory": 100}, "warning"),
            (server.server_memory, {"used_memory": 50, "maxmemory": 100}, "ok"),
        ],
    )
    def test_what_no_server_here_says(self, check, info, level):
        assert check(info).level == level

    def test_an_append_only_file_that_cannot_be_written(self):
        assert (
            server.append_only_file({"aof_enabled": 1, "aof_last_write_status": "err"}, None).level == "error"
        )
        assert server.append_only_file({"aof_enabled": 1}, "no").level == "warning"

    @pytest.mark.parametrize(("ahead_s", "level"), [(0, "ok"), (5, "warning"), (-3600, "error")])
    def test_clocks_that_differ(self, target, monkeypatch, ahead_s, level):
        real = time.time
        monkeypatch.setattr(server.time, "time", lambda: real() - ahead_s)
        found = findings_of(server.clock, target)
        assert found["clock"].level == level
        assert ("ahead" if ahead_s > 0 else "behind") in found["clock"].message or not ahead_s


class TestNoServer:
    @pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0", "redis://no-such-host.invalid:6379/0"])
    def test_it_says_so_and_goes_on(self, url, doctor):
        begun_at = time.monotonic()
        done = doctor("--redis-url", url)
        assert time.monotonic() - begun_at < 3 * 5
        assert done.exit_code == 1
        (error,) = (line for line in done.output.splitlines() if line.startswith("error"))
        assert error.startswith("error    redis")
        assert "skipped  engine" in done.output

    def test_a_frozen_server_holds_it_up_for_seconds_only(self, server_binary, tmp_path, doctor):
        with RedisServer(tmp_path / "frozen") as frozen:
            os.kill(frozen.pid, signal.SIGSTOP)
            try:
                begun_at = time.monotonic()
                done = doctor("--redis-url", frozen.url)
                assert time.monotonic() - begun_at < 3 * 5
            finally:
                os.kill(frozen.pid, signal.SIGCONT)
        assert done.exit_code == 1
        assert done.output.count("error    redis") == 1

    def test_something_else_that_answers_is_one_sentence(self, doctor):
        """A web server, or a proxy between."""
        with socket.create_server(("127.0.0.1", 0)) as web:

            def serve():
                with contextlib.suppress(OSError):
                    while True:
                        connection, _ = web.accept()
                        connection.recv(4096)
                        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                        connection.close()

            threading.Thread(target=serve, daemon=True).start()
            url = f"redis://127.0.0.1:{web.getsockname()[1]}/0"
            done = doctor("--redis-url", url)
            assert done.exit_code == 1
            assert done.output.count("error    ") == 1
            assert "is not Redis" in done.output
            status = CliRunner().invoke(main, ["status", "--redis-url", url])
            assert (status.exit_code, status.output.startswith("Error: The server at")) == (1, True)
            web.shutdown(socket.SHUT_RDWR)

    def test_a_wrong_password_is_not_called_a_missing_server(self, server_binary, tmp_path):
        with RedisServer(
            tmp_path / "locked", options={"requirepass": "right"}, credentials=("", "right")
        ) as own:
            url = own.url.replace("127", ":wrong@127")
            settings = FleetSettings(redis_url=url)
            store = JobStore(settings)
            (finding,) = server.reach(Target(settings, store))
            store.close_connections()
        assert (finding.level, finding.fix[:7]) == ("error", "correct")


def beat(store, worker_id, model="m", **fingerprint):
    made_with = {"weights": "w", "tokenizer": "t", "dtype": "bfloat16", "backend": "null", "version": "0.1.0"}
    status = WorkerStatus(
        worker_id=worker_id, model=model, host="h", pid=1, started_at=0.0,
        fingerprint=Fingerprint(**made_with | fingerprint),
    )  # fmt: skip
    store.beat(status, 60)


class TestTheFleet:
    def test_workers_of_one_kind(self, store, target):
        beat(store, "w1")
        beat(store, "w2")
        (finding,) = fleet.workers(target)
        assert (finding.level, finding.message) == ("ok", "2 on 1 host, serving m")

    def test_other_weights_are_an_error_and_another_dtype_is_a_warning(self, store, target):
        beat(store, "w1")
        beat(store, "w2", dtype="float32")
        assert findings_of(fleet.workers, target)["fingerprints"].level == "warning"
        beat(store, "w3", weights="other")
        finding = findings_of(fleet.workers, target)["fingerprints"]
        assert (finding.level, finding.message.partition(";")[0]) == (
            "error",
            "workers of m differ in weights, dtype",
        )

    def test_another_version(self, store, target):
        beat(store, "w1", version="9.9.9")
        assert "9.9.9" in findings_of(fleet.workers, target)["versions"].message

    def test_jobs_that_nobody_will_run(self, null_stack, ghost):
        from pagefleet.api import FleetClient

        with FleetClient(redis_url=null_stack.redis_url) as client:
            job = client.generate("x", model=ghost)
            store = JobStore(client.settings)
            (finding,) = fleet.waiting_jobs(Target(client.settings, store))
            client.cancel(job.job_id)
            store.close_connections()
        assert (finding.level, finding.message) == ("error", "1 open job for ghost, which no worker serves")
        assert finding.fix == "start a worker: pagefleet worker --model ghost"

    def test_a_newer_protocol(self, store, target):
        store.beat(WorkerStatus(v=2, worker_id="w", model="m", host="h", pid=1, started_at=0.0), 60)
        (finding,) = fleet.protocol_version(target)
        assert finding.level == "error"


class TestTheRunner:
    def test_a_check_that_hangs_or_fails_is_a_finding(self, target):
        def hangs(_target):
            time.sleep(60)
            return []

        def fails(_target):
            raise OSError("no such thing")

        def surprises(_target):
            raise AttributeError("nobody expected this")

        group = CheckGroup((hangs, fails, surprises), limit_s=0.1)
        slow, broken, surprising = runner._run(group, target)
        assert (surprising.level, "nobody expected this" in surprising.message) == ("error", True)
        assert (slow.check, slow.level, broken.check, broken.level) == ("hangs", "error", "fails", "error")
        assert "no such thing" in broken.message

    def test_a_server_that_goes_away_meanwhile_ends_its_group(self, server_binary, tmp_path):
        with RedisServer(tmp_path / "leaving") as leaving:
            store = JobStore(FleetSettings(redis_url=leaving.url))
            store.redis.ping()
        group = CheckGroup((server.clock, server.clock), needs_redis=True)
        (finding,) = runner._run(group, Target(store.settings, store))
        assert (finding.check, finding.level) == (server.REDIS, "error")

    def test_few_open_files(self, target, monkeypatch):
        for limit, level in ((100, "error"), (512, "warning"), (4096, "ok"), (-1, "ok")):
            monkeypatch.setattr(process.resource, "getrlimit", lambda _kind, soft=limit: (soft, soft))
            assert next(iter(process.open_files(target))).level == level

    def test_a_warning_is_no_failure(self, monkeypatch):
        from pagefleet.api.cli import doctor as command

        for level, status in ((Level.WARNING, 0), (Level.ERROR, 1)):
            monkeypatch.setattr(
                command, "run_checks", lambda _target, found=level: iter([Finding("c", found, "s", "m")])
            )
            assert CliRunner().invoke(main, ["doctor"]).exit_code == status
