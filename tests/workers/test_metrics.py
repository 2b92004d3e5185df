"""A worker's metrics of jobs, steps and failures, and their cost."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import urllib.request

import numpy as np
import pytest
from harness import leave, make_worker, submit
from prometheus_client.parser import text_string_to_metric_families
from step_items import StepItem, step_batch

from pagefleet.api import FleetClient
from pagefleet.api.contract.errors import ConfigurationError
from pagefleet.api.contract.messages import LogEntry
from pagefleet.engine.core.batch_table import BatchTable
from pagefleet.engine.core.scheduler_output import SchedulerOutput
from pagefleet.engine.execution.null_executor import null_token
from pagefleet.engine.outputs import StepOutput
from pagefleet.workers.job.active_job import ActiveJob
from pagefleet.workers.local.local_stack import WorkerProcess
from pagefleet.workers.observe.metrics import Metrics
from pagefleet.workers.observe.metrics_server import served_metrics
from pagefleet.workers.settings import WorkerSettings
from pagefleet.workers.threads.polling import wait_until

NULL = ["--model", "null", "--backend", "null", "--null-step-time", "0.005", "--lease-seconds", "1"]
SECRET = "sentinel-prompt-text"


@pytest.fixture
def worker(store):
    worker = make_worker(store, "w1")
    worker.start()
    yield worker
    leave(worker)


def value(worker, name, **labels):
    found = worker.metrics.registry.get_sample_value(f"pagefleet_{name}", {"model": "null", **labels})
    assert found is not None, name
    return found


def run(store, worker, job_id, **fields):
    message = submit(store, worker, job_id, **fields)
    worker.put(message)
    return message


class TestOfJobsThatEnd:
    def test_tokens_and_times(self, store, worker):
        messages = [run(store, worker, f"j{index}", max_tokens=20) for index in range(4)]
        messages.append(run(store, worker, "b", max_tokens=7, lane="batch"))
        for message in messages:
            assert message.last_answer()[0] == "ended"
        mine = {"lane": "interactive"}
        assert value(worker, "generation_tokens_total", **mine) == 80
        assert value(worker, "generation_tokens_total", lane="batch") == 7
        assert value(worker, "prompt_tokens_total", **mine) == sum(
            len(store.read(f"j{index}").request().prompt) + 1 for index in range(4)
        )
        assert value(worker, "inter_token_latency_seconds_count", **mine) == 76
        for name in (
            "time_to_first_token_seconds", "e2e_request_latency_seconds", "request_queue_time_seconds",
            "request_prefill_time_seconds", "request_decode_time_seconds", "request_generation_tokens",
        ):  # fmt: skip
            assert value(worker, f"{name}_count", **mine) == 4, name
            assert value(worker, f"{name}_count", lane="batch") == 1, name
        assert value(worker, "request_generation_tokens_sum", **mine) == 80
        assert value(worker, "request_success_total", finished_reason="length", **mine) == 4
        # The stages add up to the whole time, except for the server's and the publisher's.
        stages = sum(
            value(worker, f"request_{stage}_time_seconds_sum", **mine)
            for stage in ("queue", "prefill", "decode")
        )
        assert 0 < stages <= value(worker, "e2e_request_latency_seconds_sum", **mine) + 0.05

    def test_the_time_in_the_queue_counts(self, store, worker):
        """The job ends before any worker claims it."""
        message = submit(store, worker, "j", max_tokens=2)
        submitted_ms = int(store.redis.hget("pf:job:j", "enqueued_at"))
        store.redis.hset("pf:job:j", "enqueued_at", submitted_ms - 30_000)
        worker.put(message)
        message.last_answer()
        mine = {"lane": "interactive"}
        for name in ("time_to_first_token", "request_queue_time", "e2e_request_latency"):
            assert value(worker, f"{name}_seconds_sum", **mine) == pytest.approx(30, abs=10), name
        assert value(worker, "request_prefill_time_seconds_sum", **mine) < 10

    def test_a_resumed_job_had_its_first_token_elsewhere(self, store, worker):
        message = submit(store, worker, "j", max_tokens=20)
        other = worker.status().model_copy(update={"worker_id": "other"})
        store.beat(other, 30)
        (claim,) = store.claim(["j"], "other", worker.card.fingerprint.model_dump_json())
        entry = LogEntry(offset=0, token_ids=[null_token(7, 0, 0)], texts=["?"])
        store.step("other", step_batch([StepItem("j", claim.epoch, 0, 0, entry)]))
        store.release("j", "other", claim.epoch)
        worker.put(message)
        assert message.last_answer()[0] == "ended"
        mine = {"lane": "interactive"}
        assert value(worker, "generation_tokens_total", **mine) == 19
        assert value(worker, "inter_token_latency_seconds_count", **mine) == 18
        for name in ("time_to_first_token", "request_queue_time", "request_prefill_time"):
            assert value(worker, f"{name}_seconds_count", **mine) == 0, name
        assert value(worker, "request_generation_tokens_sum", **mine) == 20

    def test_steps(self, store, worker):
        for message in [run(store, worker, f"j{index}", max_tokens=30) for index in range(8)]:
            message.last_answer()
        num_steps = value(worker, "step_time_seconds_count")
        assert value(worker, "step_num_seqs_count") == num_steps
        assert num_steps >= 30
        # One per token, except for the prefills' tokens; the prompts are added.
        assert value(worker, "step_num_seqs_sum") == 8 * 30
        assert value(worker, "iteration_tokens_sum") > 8 * 30
        assert value(worker, "publish_latency_seconds_count") > 0

    @pytest.mark.parametrize("reason", ["cancelled", "deadline", "error"])
    def test_the_other_ends(self, store, worker, reason):
        fields = {"deadline": {"deadline_s": 0.3}, "error": {"prompt": "x" * 5000}}.get(reason, {})
        message = submit(store, worker, "j", max_tokens=3000, **fields)
        worker.put(message)
        if reason == "cancelled":
            assert message.answers.get(timeout=60)[0] == "started"
            store.cancel("j")
        assert message.last_answer()[0] == "ended"
        assert value(worker, "request_success_total", finished_reason=reason, lane="interactive") == 1

    def test_a_job_that_was_cancelled_before_anybody_ran_it(self, store, worker):
        message = submit(store, worker, "j")
        store.cancel("j")
        worker.put(message)
        message.last_answer()
        assert value(worker, "request_success_total", finished_reason="cancelled", lane="interactive") == 1

    def test_a_second_message_is_no_second_end(self, store, worker, caplog):
        message = run(store, worker, "j", max_tokens=3)
        assert message.last_answer()[0] == "ended"
        with caplog.at_level(logging.INFO, "pagefleet.jobs"):
            worker.put(again := type(message)("j"))
            assert again.last_answer()[0] == "ended"
        assert value(worker, "request_success_total", finished_reason="length", lane="interactive") == 1
        assert not [record for record in caplog.records if record.name == "pagefleet.jobs"]


class TestOfFaults:
    def test_a_takeover(self, store, worker):
        message = submit(store, worker, "j", max_tokens=20)
        dead = worker.status().model_copy(update={"worker_id": "dead"})
        store.beat(dead, 30)
        store.claim(["j"], "dead", worker.card.fingerprint.model_dump_json())
        store.delete_lease("dead")
        worker.put(message)
        assert message.last_answer()[0] == "ended"
        assert value(worker, "takeovers_total", lane="interactive") == 1

    def test_no_takeover_where_the_job_was_given_back(self, store, worker):
        message = submit(store, worker, "j", max_tokens=20)
        other = worker.status().model_copy(update={"worker_id": "other"})
        store.beat(other, 30)
        (claim,) = store.claim(["j"], "other", worker.card.fingerprint.model_dump_json())
        assert store.release("j", "other", claim.epoch) == "released"
        worker.put(message)
        assert message.last_answer()[0] == "ended"
        assert value(worker, "takeovers_total", lane="interactive") == 0

    def test_a_fenced_write(self, store, worker):
        message = run(store, worker, "j", max_tokens=3000)
        assert message.answers.get(timeout=60)[0] == "started"
        store.redis.hset("pf:job:j", "owner", "somebody-else")
        assert wait_until(lambda: value(worker, "fenced_writes_total", reason="fenced") == 1, 60)

    def test_a_dead_letter(self, store, worker):
        message = submit(store, worker, "j")
        dead = worker.status().model_copy(update={"worker_id": "dead"})
        store.redis.hset("pf:job:j", mapping={"fruitless": 9})
        store.beat(dead, 30)
        store.claim(["j"], "dead", worker.card.fingerprint.model_dump_json())
        store.delete_lease("dead")
        worker.put(message)
        assert message.last_answer()[0] == "ended"
        assert value(worker, "dead_letters_total") == 1


class TestOfTheMoment:
    def test_running_sequences_and_blocks(self, store, worker):
        message = run(store, worker, "j", max_tokens=3000)
        message.answers.get(timeout=60)
        assert wait_until(lambda: value(worker, "num_requests_running") == 1, 60)
        assert 0 < value(worker, "kv_cache_usage_perc") < 1
        store.cancel("j")
        message.last_answer()
        assert wait_until(lambda: value(worker, "num_requests_running") == 0, 60)
        assert value(worker, "kv_cache_usage_perc") == 0

    def test_prefix_cache(self, store, worker):
        for index in range(2):
            run(store, worker, f"j{index}", prompt="x" * 300, max_tokens=2).last_answer()
        assert value(worker, "prefix_cache_queries_total") > 600
        assert value(worker, "prefix_cache_hits_total") > 200

    def test_the_lease(self, worker):
        assert value(worker, "lease_seconds") == 1.0
        assert 0 <= value(worker, "lease_age_seconds") < 1.0
        assert value(worker, "late_beats_total") == 0


def test_a_series_exists_before_its_first_event(worker):
    """Otherwise rate() does not see the first increase."""
    for family in worker.metrics.registry.collect():
        assert family.samples, family.name


@pytest.fixture
def process(redis_server, store, tmp_path):
    arguments = [*NULL, "--metrics-port", "0", "--log-format", "json", "--drain-seconds", "0"]
    worker = WorkerProcess(redis_server.url, arguments, log_file=tmp_path / "worker.log").start()
    try:
        worker.wait_ready(60)
        yield worker
    finally:
        worker.terminate()
        worker.wait(60)


def log_of(process):
    return [json.loads(line) for line in process.read_log()]


class TestOfAProcess:
    def test_its_port_is_in_the_log_and_serves_the_metrics(self, process, redis_server):
        told = [line["message"] for line in log_of(process) if "metrics at" in line["message"]]
        (url,) = re.findall(r"http://127\.0\.0\.1:\d+/metrics", told[0])
        with FleetClient(redis_url=redis_server.url) as fleet:
            fleet.generate("x", max_tokens=10).result()
        with urllib.request.urlopen(url, timeout=10) as reply:
            families = {
                family.name: family for family in text_string_to_metric_families(reply.read().decode())
            }
        assert {"pagefleet_num_requests_running", "pagefleet_inter_token_latency_seconds"} <= set(families)
        assert "process_resident_memory_bytes" in families

    def test_one_line_a_job_with_job_tenant_and_attempt_and_no_text(self, process, redis_server):
        with FleetClient(redis_url=redis_server.url) as fleet:
            stream = fleet.generate(SECRET, max_tokens=10, tenant="acme", seed=7)
            text = stream.result().text
            cancelled = fleet.generate(SECRET, max_tokens=3000, tenant="acme")
            next(cancelled)
            cancelled.cancel()
            cancelled.result()
        assert wait_until(lambda: len(ends_in(process)) == 2, 60)
        done, second = ends_in(process)
        assert (done["job"], done["tenant"], done["attempt"]) == (stream.job_id, "acme", 1)
        assert (done["state"], done["finish_reason"], done["num_tokens"]) == ("done", "length", 10)
        assert done["queue_s"] + done["prefill_s"] + done["decode_s"] <= done["total_s"] + 0.1
        assert (second["job"], second["state"]) == (cancelled.job_id, "cancelled")
        log = process.log_file.read_text()
        assert SECRET not in log
        assert text not in log


def ends_in(process):
    return [line for line in log_of(process) if line["logger"] == "pagefleet.jobs"]


def test_the_plain_line(store, worker, caplog):
    with caplog.at_level(logging.INFO, "pagefleet.jobs"):
        run(store, worker, "j", max_tokens=5, tenant="acme").last_answer()
    (line,) = [record.getMessage() for record in caplog.records if record.name == "pagefleet.jobs"]
    assert line.startswith("job ended: job=j tenant=acme attempt=1 lane=interactive state=done")


def test_a_port_that_is_taken_is_one_sentence():
    settings = WorkerSettings(metrics_port=0)
    with served_metrics(settings, Metrics("m").registry) as port:
        again = WorkerSettings(metrics_port=port)
        with (
            pytest.raises(ConfigurationError, match="metrics_port"),
            served_metrics(again, Metrics("m").registry),
        ):
            pass


def test_off_by_default():
    with served_metrics(WorkerSettings(), Metrics("m").registry) as port:
        assert port is None


class Message:
    lane = "interactive"


def made_up_step(num_seqs):
    """A decode step of 64 sequences, as the engine passes it."""
    metrics = Metrics("m")
    jobs = [ActiveJob(f"job-{index}", 1, Message()) for index in range(num_seqs)]
    for job in jobs:
        metrics.on_started(job)
    names = [job.request_id for job in jobs]
    ones = np.ones(num_seqs, dtype=np.int32)
    step = SchedulerOutput.of(BatchTable(num_seqs, 8), [], np.arange(num_seqs, dtype=np.int32), ones)
    zeros = [0] * num_seqs
    output = StepOutput(names, zeros, [5] * num_seqs, [1] * num_seqs, [1] * num_seqs, ["x"] * num_seqs, zeros)
    return metrics, step, output


@pytest.mark.alone
def test_what_a_step_of_64_costs():
    metrics, step, output = made_up_step(64)
    num_steps = 2000
    # CPU time of this thread only, without other load on the machine.
    begun = time.thread_time()
    for _ in range(num_steps):
        metrics.on_step(0.0, step)
        metrics.on_output(output, 1.0)
    engine_us = (time.thread_time() - begun) / num_steps * 1e6
    begun = time.thread_time()
    metrics.fold()
    fold_us = (time.thread_time() - begun) / num_steps * 1e6
    # Shown with `pytest -s`.
    sys.stderr.write(
        f"\n64 sequences: {engine_us:.2f} us a step in the engine's thread, {fold_us:.1f} to fold it\n"
    )
    assert (
        metrics.registry.get_sample_value(
            "pagefleet_generation_tokens_total", {"model": "m", "lane": "interactive"}
        )
        == 64 * num_steps
    )
    # Goals: 5 and 60; the limit in a test is three times the goal.
    assert engine_us < 15
    assert fold_us < 180
