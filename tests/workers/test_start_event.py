"""The `task-started` event that a worker sends to Celery's monitors."""

from __future__ import annotations

from ast import literal_eval

import pytest
from harness import leave, make_worker, submit


@pytest.fixture
def started(store):
    """Run a job in a worker with these settings. Return the fields of its start event."""
    workers = []

    def run(job_id, fields, **settings):
        worker = make_worker(store, f"w{len(workers)}", **settings)
        workers.append(worker)
        message = submit(store, worker, job_id, **fields)
        worker.start()
        worker.put(message)
        kind, told = message.answers.get(timeout=60)
        assert kind == "started"
        return told

    yield run
    for worker in workers:
        leave(worker)


def test_the_attempt_and_the_wait_and_no_prompt(started):
    told = started("job", {"prompt": "sentinel", "max_tokens": 2})
    assert (told["attempts"], told["retries"]) == (1, 0)
    assert 0 <= told["queue_s"] < 20
    assert literal_eval(told["kwargs"]) == {"prompt": "<8 chars>", "max_tokens": 2, "model": "null"}


def test_the_prompt_if_it_was_asked_for(started):
    told = started("job", {"prompt": "Once upon a time", "max_tokens": 2}, prompt_chars=4)
    assert literal_eval(told["kwargs"])["prompt"] == "Once… <16 chars>"
