"""``pagefleet worker --trace-steps``: the steps of a real worker and the calls of its publisher."""

from __future__ import annotations

import json

from pagefleet.api import FleetClient
from pagefleet.workers.local.local_stack import LocalStack
from pagefleet.workers.threads.polling import wait_until


def test_a_worker_writes_its_first_steps(server_binary, own_environment, tmp_path):
    file = tmp_path / "trace.json"
    arguments = ["--model", "null", "--backend", "null", "--null-step-time", "0.005", "--trace-steps", "5"]
    with LocalStack(tmp_path / "stack", [*arguments, "--trace-file", str(file)]) as stack:
        with FleetClient(redis_url=stack.redis_url) as fleet:
            assert len(fleet.generate("x", max_tokens=20).result().token_ids) == 20
        assert wait_until(file.exists, 60)
    trace = json.loads(file.read_text())["traceEvents"]
    assert sum(event["name"] == "step" for event in trace) == 5
    threads = {event["tid"]: event["args"]["name"] for event in trace if event["name"] == "thread_name"}
    published = [event for event in trace if event["name"] == "publish"]
    assert {threads[event["tid"]] for event in published} == {"pagefleet-publisher"}
    assert {threads[event["tid"]] for event in trace if event["name"] == "step"} == {"pagefleet-engine"}
