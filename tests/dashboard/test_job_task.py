"""A job as Flower keeps it, from the events that it hears."""

from __future__ import annotations

import itertools
from ast import literal_eval

import pytest
from celery.events.state import State

from pagefleet.api.operate.flower.job_task import JobTask

JOB = "order-17"
clock = itertools.count(1)


class Jobs(State):
    Task = JobTask


@pytest.fixture
def hear():
    """Feeds one event; gives the job as it stands then."""
    state = Jobs()

    def hear(kind, at, worker="w1", **fields):
        about = {"uuid": JOB, "hostname": worker, "timestamp": at, "local_received": at, "clock": next(clock)}
        state.event({"type": f"task-{kind}", **about, **fields})
        return state.tasks[JOB]

    return hear


def test_a_job_that_goes_on_elsewhere_shows_its_attempts_and_waited_once(hear):
    shown = "{'prompt': '<5 chars>', 'max_tokens': 7}"
    hear("sent", 100.0, "client", name="pagefleet.generate", args="()", kwargs=shown)
    hear("received", 101.0, name="pagefleet.generate", args="()", kwargs="{...}", retries=0)
    job = hear("started", 102.0, attempts=1, retries=0, queue_s=2.0, kwargs=shown)
    assert (job.state, job.attempts, job.retries, job.queue_time.strip()) == ("STARTED", 1, 0, "2.000 s")
    # When its worker gives it back, Flower says that it will be tried again.
    assert hear("retried", 103.0).state == "RETRY"
    job = hear("received", 104.0, "w2", name="pagefleet.generate", args="()", kwargs="{...}", retries=0)
    assert job.retries == 0
    job = hear("started", 105.0, "w2", attempts=2, retries=1, kwargs=shown)
    assert (job.state, job.worker.hostname) == ("STARTED", "w2")
    assert (job.attempts, job.retries, job.queue_time.strip()) == (2, 1, "2.000 s")
    # A message that comes again after the end changes nothing of it.
    hear("succeeded", 106.0, "w2", runtime=1.0, result="finish_reason=length")
    job = hear("received", 107.0, name="pagefleet.generate", args="()", kwargs="{...}", retries=0)
    assert (job.state, job.retries, literal_eval(job.kwargs)["max_tokens"]) == ("SUCCESS", 1, 7)
    assert {"queue_time", "attempts"} <= set(job.as_dict())


def test_queue_times_sort_as_text(hear):
    times = [
        hear("started", 1.0, attempts=1, queue_s=seconds).queue_time for seconds in (0.25, 3.0, 20.0, 1e5)
    ]
    assert times == sorted(times)


def test_a_task_of_another_kind_waits_from_its_sending(hear):
    hear("received", 101.0, name="theirs", kwargs="{'secret': 'sentinel'}", retries=2)
    assert hear("started", 103.5).queue_time.strip() == "2.500 s"
    hear("sent", 100.0, "client", name="theirs")
    job = hear("started", 103.5)
    assert (job.queue_time.strip(), job.retries, job.attempts, job.kwargs) == ("3.500 s", 2, None, "...")


def test_a_prompt_is_shown_as_far_as_was_asked_for(hear, monkeypatch):
    monkeypatch.setattr(JobTask, "prompt_chars", 4)
    job = hear("started", 1.0, attempts=1, kwargs="{'prompt': 'Once upon a time'}")
    assert job.kwargs == "{'prompt': 'Once… <16 chars>'}"


def test_what_makes_no_sense_is_no_error(hear):
    """Whoever may publish events may publish these."""
    job = hear("started", 1.0, attempts="many", queue_s="long", kwargs=7, args=None)
    assert (job.queue_time, job.retries) == (None, None)
