"""A worker releases jobs that Redis assigns to it and that it does not hold."""

from __future__ import annotations

import pytest

from pagefleet.api.broker.celery_app import make_celery
from pagefleet.api.broker.status import num_queued
from pagefleet.api.contract.messages import JobState, WorkerStatus
from pagefleet.api.contract.requests import build_request
from pagefleet.api.protocol.operation_types import Limits
from pagefleet.api.testing import fake_card
from pagefleet.workers.recovery.auditor import Auditor

QUEUE = "pagefleet.null.interactive"
FINGERPRINT = fake_card().fingerprint.model_dump_json()


@pytest.fixture
def held():
    return set()


@pytest.fixture
def auditor(store, held):
    return Auditor(store, "w1", make_celery(store.settings), [QUEUE], is_held=held.__contains__)


def claimed(store, job_id, worker_id="w1"):
    store.beat(WorkerStatus(worker_id=worker_id, model="null", host="h", pid=1, started_at=0.0), 60)
    request = build_request({"model": "null", "prompt": "x", "seed": 1})
    store.submit(job_id, request, queue=QUEUE, channel="", limits=Limits(100, 100))
    (claim,) = store.claim([job_id], worker_id, FINGERPRINT)
    return claim


def test_a_job_that_is_not_here_is_sent_again(store, auditor):
    claimed(store, "lost")
    # The first round may have run between a claim and its reply.
    assert auditor.audit() == 0
    assert auditor.audit() == 1
    assert store.read("lost").state is JobState.QUEUED
    assert num_queued(store, QUEUE) == 1
    assert auditor.audit() == 0


def test_what_is_held_is_left_alone(store, auditor, held):
    claimed(store, "mine")
    held.add("mine")
    assert [auditor.audit() for _ in range(3)] == [0, 0, 0]
    assert store.read("mine").state is JobState.RUNNING


def test_others_jobs_are_left_alone(store, auditor):
    claimed(store, "theirs", "w2")
    assert [auditor.audit() for _ in range(3)] == [0, 0, 0]
    assert store.read("theirs").state is JobState.RUNNING


def test_a_new_attempt_is_a_new_suspicion(store, auditor):
    claim = claimed(store, "j")
    assert auditor.audit() == 0
    store.release("j", "w1", claim.epoch)
    store.claim(["j"], "w1", FINGERPRINT)
    assert auditor.audit() == 0
    assert auditor.audit() == 1
