"""Flower as a person sees it: 32 jobs stream, one is terminated and one revoked by the page's buttons."""

from __future__ import annotations

from ast import literal_eval
from concurrent.futures import ThreadPoolExecutor

import pytest
from watched_fleet import NUM_BLOCKS, NUM_SEATS

from pagefleet.api import FleetClient
from pagefleet.api.contract import keys
from pagefleet.engine.execution.null_executor import null_token
from pagefleet.workers.threads.polling import wait_until

PROMPT = "sentinel-prompt " * 10
NUM_JOBS = 32
LONG = 4000


class Crowd:
    """Jobs that go on until they are cancelled; each one's tokens follow from its seed."""

    def __init__(self, fleet):
        self.fleet = fleet
        self.streams = []

    def add(self, num_jobs, lane="interactive"):
        seeds = range(len(self.streams), len(self.streams) + num_jobs)
        new = [
            self.fleet.generate(
                f"{seed:03} {PROMPT}",
                max_tokens=LONG,
                seed=seed,
                lane=lane,
                job_id=f"{lane}-{seed}",
                idle_timeout=60,
            )
            for seed in seeds
        ]
        self.streams += new
        return new

    def check(self):
        """Every token that came is its job's own, and none is missing."""
        for seed, stream in enumerate(self.streams):
            result = stream.result()
            assert result.finish_reason == "cancelled"
            assert result.token_ids == [null_token(seed, 0, at) for at in range(len(result.token_ids))]


@pytest.fixture
def crowd(watched):
    with FleetClient(redis_url=watched.guarded.url_of("producer")) as fleet:
        crowd = Crowd(fleet)
        yield crowd
        for stream in crowd.streams:
            stream.cancel()


def flagged_at(redis, job_id):
    """How many tokens the job had when the cancel was written."""
    fields = []

    def is_flagged():
        fields[:] = redis.hmget(keys.job(job_id), "cancel", "n:0")
        return fields[0] == "1"

    assert wait_until(is_flagged, 60, poll_s=0.002)
    return int(fields[1])


@pytest.mark.slow
def test_32_jobs_stream_and_the_buttons_work(watched, crowd, browser):
    interactive, batch = crowd.add(NUM_JOBS - 2), crowd.add(2, "batch")
    for stream in crowd.streams:
        next(stream)

    # Somebody comes by a link to one job's page, and its button works for them at once.
    assert browser.open_task(interactive[-1].job_id)["Status"] == "STARTED"
    assert browser.press("Terminate") == f"Revoked '{interactive[-1].job_id}'"
    assert interactive.pop().result().finish_reason == "cancelled"
    interactive += crowd.add(1)
    next(interactive[-1])

    # Every job has its line, and no line has a prompt.
    running = {stream.job_id for stream in [*interactive, *batch]}
    assert wait_until(
        lambda: {row["uuid"] for row in browser.open_tasks(search="state:STARTED")} == running, 60, 0.2
    )
    rows = {row["uuid"]: row for row in browser.rows()}
    assert len(rows) == NUM_JOBS
    for row in rows.values():
        assert row["name"] == "pagefleet.generate"
        assert row["worker"].replace("\n", "") == watched.worker_name
        assert (row["attempts"], row["retries"]) == ("1", "0")
        assert literal_eval(row["kwargs"])["prompt"] == f"<{len(PROMPT) + 4} chars>"
    waited = [float(row["queue_time"].removesuffix(" s")) for row in browser.sort("Queue time")]
    assert waited == sorted(waited)
    assert 0 <= waited[0] <= waited[-1] < 60
    assert "sentinel" not in browser.page.content()

    # The worker's page says what its engine does.
    pool = browser.open_worker(watched.worker_name)
    assert (pool["Max concurrency"], pool["KV blocks total"]) == (str(NUM_SEATS), str(NUM_BLOCKS))
    assert (pool["Sequences running"], pool["Sequences waiting"]) == (str(NUM_JOBS), "0")
    assert int(pool["KV blocks used"]) >= NUM_JOBS * len(PROMPT) // 16
    assert float(pool["KV use %"]) == round(100 * int(pool["KV blocks used"]) / NUM_BLOCKS, 1)
    assert float(pool["Generation tokens per second"]) > 0

    # Terminate ends a job in the engine: the step that was running and one more.
    victim = interactive[0]
    page = browser.open_task(victim.job_id)
    assert (page["Attempts"], page["Retries"]) == ("1", "0")
    with ThreadPoolExecutor(1) as pool, watched.guarded.admin() as redis:
        num_before = pool.submit(flagged_at, redis, victim.job_id)
        assert browser.press("Terminate") == f"Revoked '{victim.job_id}'"
        result = victim.result()
        assert result.finish_reason == "cancelled"
        assert len(result.token_ids) <= num_before.result() + 2
    assert wait_until(lambda: crowd.fleet.status().workers[0].num_running == NUM_JOBS - 1, 60, 0.1)
    # The page says what is, not what it heard when it was last opened.
    assert browser.open_worker(watched.worker_name)["Sequences running"] == str(NUM_JOBS - 1)
    page = browser.open_task(victim.job_id)
    assert page["Status"] == "REVOKED"
    assert float(page["Runtime"].split()[0]) > 0

    # Two batch jobs give their seats to interactive ones, and will be tried again. Revoke ends one of them,
    crowd.add(NUM_SEATS - NUM_JOBS + 3)
    for stream in batch:
        assert wait_until(lambda job=stream.job_id: browser.open_task(job)["Status"] == "RETRY", 60, 0.1)
    browser.press("Revoke")
    assert batch[1].result().finish_reason == "cancelled"
    # and the other one goes on when there is room.
    for stream in interactive[1:3]:
        stream.cancel()
    assert wait_until(lambda: browser.open_task(batch[0].job_id)["Attempts"] == "2", 60, 0.1)
    page = browser.open_task(batch[0].job_id)
    assert (page["Status"], page["Retries"]) == ("STARTED", "1")

    # Nobody else lost or got a token, and the blocks are free again.
    for stream in crowd.streams:
        stream.cancel()
    crowd.check()
    assert wait_until(lambda: browser.open_worker(watched.worker_name)["KV blocks used"] == "0", 60, 0.1)
