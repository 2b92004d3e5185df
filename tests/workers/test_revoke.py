"""What a worker does with a revoke of a job that another one runs."""

from __future__ import annotations

import pytest
from harness import leave, make_worker, submit

from pagefleet.api.contract.messages import JobState


@pytest.fixture
def workers(store):
    """Two: the first one runs ``job``."""
    first, second = (make_worker(store, name, drain_s=0.0) for name in ("w1", "w2"))
    message = submit(store, first, "job", max_tokens=100_000 // 64)
    first.start()
    first.put(message)
    assert message.answers.get(timeout=20)[0] == "started"
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
    # It has ended: nothing is left to revoke. What nobody knows is Celery's.
    assert second.revoker.revoke("job", terminate=True) is False
    assert second.revoker.revoke("unknown", terminate=False) is True


def test_it_does_not_meet_what_is_claimed_at_that_moment(workers, store, monkeypatch):
    """The job is queued when the revoke comes, and the other worker's claim is there before the cancel."""
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
    # Nothing is left for Celery to do.
    assert second.revoker.revoke("other", terminate=False) is False
    assert store.read("other").state is JobState.CANCELLED
