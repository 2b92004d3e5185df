"""A worker receives a revoke for a job that another worker runs."""

from __future__ import annotations

import pytest
from harness import leave, make_worker, submit

from pagefleet.api.contract.messages import JobState


@pytest.fixture
def workers(store):
    """Two workers; the first one runs ``job``."""
    first, second = (make_worker(store, name, drain_s=0.0) for name in ("w1", "w2"))
    message = submit(store, first, "job", max_tokens=100_000 // 64)
    first.start()
    first.put(message)
    assert message.answers.get(timeout=60)[0] == "started"
    yield second, message
    leave(first)


def test_it_runs_on_and_is_not_taken_for_revoked(workers, store):
    second, _ = workers
    assert second.revoker.revoke("job", terminate=False) is False
    assert store.read("job").state is JobState.RUNNING
    assert "cancel" not in store.read("job").fields


def test_terminate_reaches_it(workers, store):
    second, message = workers
    assert second.revoker.revoke("job", terminate=True) is True
    assert message.last_answer()[1].state is JobState.CANCELLED
    # The job has ended, so there is nothing to revoke. Unknown tasks are left to Celery.
    assert second.revoker.revoke("job", terminate=True) is False
    assert second.revoker.revoke("unknown", terminate=False) is True


def test_it_does_not_meet_what_is_claimed_at_that_moment(workers, store, monkeypatch):
    """The job is queued when the revoke arrives, and the other worker claims it before the cancel."""
    second, _ = workers
    submit(store, second, "other", max_tokens=5)
    cancel = second._store.cancel

    def late(*args, **options):
        store.claim(["other"], "w1", "{}")
        return cancel(*args, **options)

    monkeypatch.setattr(second._store, "cancel", late)
    assert second.revoker.revoke("other", terminate=False) is False
    assert store.read("other").state is JobState.RUNNING
    assert "cancel" not in store.read("other").fields


def test_what_is_queued_ends_at_once(workers, store):
    second, _ = workers
    submit(store, second, "other", max_tokens=5)
    # Celery has nothing to do.
    assert second.revoker.revoke("other", terminate=False) is False
    assert store.read("other").state is JobState.CANCELLED
