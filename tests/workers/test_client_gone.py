"""The jobs of a lost client are cancelled, unless they are detached or have another reader."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from pagefleet.api import FleetClient, JobState
from pagefleet.api.protocol.operation_types import CLIENT_LEASE_S
from pagefleet.workers.local.local_stack import LocalStack
from pagefleet.workers.recovery.sweeper import SWEEP_INTERVAL_S
from pagefleet.workers.threads.polling import wait_until

NULL = ["--model", "null", "--backend", "null", "--null-step-time", "0.05"]
NUM_TOKENS = 2000
JOBS = ("alone", "read", "detached", "batch")
CLIENT = f"""
import time
from pagefleet.api import FleetClient
fleet = FleetClient()
streams = [
    fleet.generate("x", job_id=job_id, max_tokens={NUM_TOKENS}, **options)
    for job_id, options in {{
        "alone": {{}}, "read": {{}}, "detached": {{"detached": True}}, "batch": {{"lane": "batch"}},
    }}.items()
]
print("sent", flush=True)
time.sleep(1000)
"""


@pytest.fixture
def stack(server_binary, tmp_path):
    with LocalStack(tmp_path, NULL, drain_s=0.0) as stack:
        yield stack


@pytest.mark.slow
def test_a_dead_clients_jobs(stack, monkeypatch):
    monkeypatch.setenv("REDIS_URL", stack.redis_url)
    client = subprocess.Popen([sys.executable, "-c", CLIENT], stdout=subprocess.PIPE)
    assert client.stdout.readline() == b"sent\n"
    with FleetClient(redis_url=stack.redis_url) as fleet:
        store = fleet._live.store

        def state(job_id):
            return store.read(job_id, with_log=False).state

        assert wait_until(lambda: {state(job) for job in JOBS} == {JobState.RUNNING}, 10)
        # The jobs of a living client are not cancelled.
        time.sleep(CLIENT_LEASE_S + 2 * SWEEP_INTERVAL_S)
        assert state("alone") is JobState.RUNNING
        client.send_signal(signal.SIGKILL)
        client.wait()
        killed_at = time.monotonic()
        read = fleet.attach("read")
        patience_s = 3 * (CLIENT_LEASE_S + 2 * SWEEP_INTERVAL_S)
        assert wait_until(lambda: state("alone") is JobState.CANCELLED, patience_s)
        assert time.monotonic() - killed_at > CLIENT_LEASE_S / 2
        time.sleep(SWEEP_INTERVAL_S + 1)
        assert {state(job) for job in ("read", "detached", "batch")} == {JobState.RUNNING}
        assert fleet.attach("alone").result().finish_reason == "cancelled"
        for job_id in ("read", "detached", "batch"):
            fleet.cancel(job_id)
        assert read.result().finish_reason == "cancelled"
    client.stdout.close()
