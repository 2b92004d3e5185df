"""SIGTERM loses no running job: every stream continues with the same tokens. Real processes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

from pagefleet.api import FleetClient, FleetSettings
from pagefleet.engine.execution.null_executor import null_token
from pagefleet.workers.local.local_stack import LocalStack
from pagefleet.workers.threads.polling import wait_until

NULL = ["--model", "null", "--backend", "null", "--null-step-time", "0.02"]
UP = [sys.executable, "-m", "pagefleet.api.cli.main", "up", "--no-flower"]


def client(stack: LocalStack) -> FleetClient:
    return FleetClient(redis_url=stack.redis_url)


def test_streams_go_on_with_the_other_worker(server_binary, tmp_path):
    # Given two workers and sixteen running streams.
    with LocalStack(tmp_path, NULL, num_workers=2, drain_s=0.0) as stack, client(stack) as fleet:
        streams = [fleet.generate("x", max_tokens=150, seed=index) for index in range(16)]
        for stream in streams:
            next(stream)
        # When one worker that holds some of them receives SIGTERM.
        status = fleet.status()
        holders = {job.worker_id for job in status.running}
        pid = next(worker.pid for worker in status.workers if worker.worker_id in holders)
        (leaving,) = [worker for worker in stack.workers if worker.pid == pid]
        (staying,) = [worker for worker in stack.workers if worker.pid != pid]
        leaving.terminate()
        # Then every stream has each of its tokens once; the seed determines them.
        results = [stream.result() for stream in streams]
        for index, result in enumerate(results):
            assert result.token_ids == [null_token(index, 0, position) for position in range(150)]
        assert max(result.attempts for result in results) == 2
        assert leaving.wait(60) == 0
        # And no job stays open.
        status = fleet.status()
        assert [worker.pid for worker in status.workers] == [staying.pid]
        assert wait_until(lambda: all(queue.num_open == 0 for queue in fleet.status().queues), 60)


def test_a_drain_lets_running_jobs_finish(server_binary, tmp_path):
    with LocalStack(tmp_path, NULL, drain_s=20.0) as stack, client(stack) as fleet:
        running = fleet.generate("x", max_tokens=50, seed=1)
        next(running)
        stack.workers[0].terminate()
        assert len(running.result().token_ids) == 50
        assert stack.workers[0].wait(60) == 0


def test_a_worker_leaves_although_redis_is_gone(server_binary, tmp_path):
    """Its jobs are recovered when the lease expires."""
    with LocalStack(tmp_path, [*NULL, "--lease-seconds", "1"], drain_s=0.5) as stack, client(stack) as fleet:
        stream = fleet.generate("x", max_tokens=2000)
        next(stream)
        stack.server.kill()
        begun_at = time.monotonic()
        stack.workers[0].terminate()
        stack.workers[0].wait(60)
        assert time.monotonic() - begun_at < 20


def test_up_says_how_to_use_it_and_ctrl_c_drains(server_binary, tmp_path, monkeypatch):
    monkeypatch.setenv("PAGEFLEET_HOME", str(tmp_path))
    process = subprocess.Popen([*UP, *NULL], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert wait_until(lambda: (tmp_path / "stack.json").exists(), 60)
        # Found without any setting, and used as the three lines say.
        with FleetClient(FleetSettings()) as fleet:
            running = fleet.generate("Once upon a time", max_tokens=64)
            next(running)
            process.send_signal(signal.SIGINT)
            assert len(running.result().token_ids) == 64
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, output
    assert "from pagefleet import FleetClient" in output
    assert "redis://:***@127.0.0.1:" in output
    assert str(tmp_path / "redis_url") in output
    assert output.rstrip().endswith("stopped")
    assert not (tmp_path / "stack.json").exists()
