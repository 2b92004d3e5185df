"""A service that uses only Celery: send_task, AsyncResult, canvas, revoke, events. A real worker process."""

from __future__ import annotations

import threading
import uuid
from collections import defaultdict

import pytest
from celery import chain, group, signature
from celery.exceptions import TaskRevokedError
from celery.states import READY_STATES

from pagefleet.api import FleetClient, JobState
from pagefleet.api.contract import keys
from pagefleet.api.contract.errors import UnknownParameter
from pagefleet.workers.threads.polling import wait_until

QUEUE = "pagefleet.null.interactive"
TASK = "pagefleet.generate"


def send(service, **kwargs):
    return service.send_task(TASK, kwargs={"model": "null", "prompt": "hello", **kwargs}, queue=QUEUE)


def test_send_task_and_get(service):
    result = send(service, max_tokens=5, seed=7).get(timeout=60)
    assert result["state"] == "D"
    assert len(result["choices"][0]["token_ids"]) == 5
    assert result["choices"][0]["finish_reason"] == "length"
    # The client gets the same tokens for the same seed.
    assert send(service, max_tokens=5, seed=7).get(timeout=60)["choices"] == result["choices"]


def test_a_wrong_field_fails_the_task_with_the_sentence(service):
    with pytest.raises(UnknownParameter, match="did you mean 'max_tokens'"):
        send(service, max_tokns=5).get(timeout=60)


def test_the_result_of_a_clients_job_is_celerys_result_too(service, null_stack):
    with FleetClient(redis_url=null_stack.redis_url) as fleet:
        stream = fleet.generate("hello", model="null", max_tokens=4)
        text = stream.text()
        result = service.AsyncResult(stream.job_id).get(timeout=60)
    assert result["choices"][0]["text"] == text


def test_a_sent_task_can_be_attached_to(service, null_stack):
    sent = send(service, max_tokens=2000)
    with FleetClient(redis_url=null_stack.redis_url) as fleet:
        assert wait_until(lambda: any(job.job_id == sent.id for job in fleet.status().running), 60)
        stream = fleet.attach(sent.id)
        assert next(stream).offset == 0
        fleet.cancel(sent.id)
        assert stream.result().finish_reason == "cancelled"


@pytest.mark.parametrize("terminate", [True, False])
def test_revoke_of_a_running_task(service, null_stack, terminate):
    """terminate=True stops the job. Without it, a running job continues, as in Celery."""
    sent = send(service, max_tokens=2000 if terminate else 600)
    with FleetClient(redis_url=null_stack.redis_url) as fleet:
        assert wait_until(lambda: any(job.job_id == sent.id for job in fleet.status().running), 60)
        sent.revoke(terminate=terminate)
        if not terminate:
            assert len(sent.get(timeout=30)["choices"][0]["token_ids"]) == 600
            return
        with pytest.raises(TaskRevokedError):
            sent.get(timeout=60)
        result = fleet.attach(sent.id).result()
    assert result.state is JobState.CANCELLED
    assert len(result.token_ids) < 2000


def test_a_foreign_workers_revoke_leaves_what_runs(service, foreign_worker):
    """Celery stores REVOKED for a task whose result is not STARTED."""
    sent = send(service, max_tokens=1200)
    assert wait_until(lambda: sent.state == "STARTED", 60)
    assert sent.info["hostname"].startswith("null@")
    assert sent.info["pid"]
    sent.revoke()
    assert wait_until(lambda: f"flagged as revoked: {sent.id}" in foreign_worker.read_text(), 60)
    seen = set()
    while (state := sent.state) not in READY_STATES:
        seen.add(state)
    assert seen == {"STARTED"}
    assert len(sent.get()["choices"][0]["token_ids"]) == 1200


def test_started_expires_and_is_replaced_by_the_result(service, null_stack, fleet):
    stream = fleet.generate("hello", max_tokens=600, result_ttl_s=50)
    result = service.AsyncResult(stream.job_id)
    assert wait_until(lambda: result.state == "STARTED", 60)
    redis = fleet._live.store.redis
    assert 0 < redis.ttl(keys.result(stream.job_id)) <= 86400
    assert result.get(timeout=60)["state"] == "D"
    assert wait_until(lambda: 0 < redis.ttl(keys.result(stream.job_id)) <= 50, 60)
    fleet.delete(stream.job_id)
    assert service.AsyncResult(stream.job_id).state == "PENDING"


def test_a_running_job_that_is_deleted_leaves_no_result(service, fleet):
    stream = fleet.generate("hello", max_tokens=2000)
    assert wait_until(lambda: service.AsyncResult(stream.job_id).state == "STARTED", 60)
    fleet.delete(stream.job_id)
    assert wait_until(lambda: service.AsyncResult(stream.job_id).state == "PENDING", 60)


@pytest.mark.parametrize("terminate", [True, False])
def test_revoke_ends_what_waits_at_once(service, fleet, ghost, terminate):
    """Its model has no worker. Any worker that receives the command cancels the job."""
    stream = fleet.generate("hello", model=ghost, idle_timeout=30)
    service.AsyncResult(stream.job_id).revoke(terminate=terminate)
    assert stream.result().state is JobState.CANCELLED
    with pytest.raises(TaskRevokedError):
        service.AsyncResult(stream.job_id).get(timeout=60)


def test_a_link_and_a_chain_run_after_the_job(service):
    """The follow-up tasks are fleet jobs too, and receive the result by partial application."""
    ids = [str(uuid.uuid4()) for _ in range(2)]
    follow_up = signature(
        TASK, kwargs={"model": "null", "prompt": "after", "max_tokens": 2}, app=service, immutable=True
    )
    linked = follow_up.clone().set(task_id=ids[0], queue=QUEUE)
    chained = follow_up.clone().set(task_id=ids[1], queue=QUEUE)
    first = follow_up.clone().set(queue=QUEUE)
    first.link(linked)
    chain(first, chained, app=service).apply_async()
    for task_id in ids:
        assert service.AsyncResult(task_id).get(timeout=60)["state"] == "D"


def test_a_failing_job_runs_its_errback(service):
    errback_id = str(uuid.uuid4())
    errback = signature(TASK, app=service, immutable=True).set(task_id=errback_id, queue=QUEUE)
    errback.kwargs.update(model="null", prompt="sorry", max_tokens=2)
    sent = service.send_task(
        TASK, kwargs={"model": "null", "prompt": "x" * 9000}, queue=QUEUE, link_error=errback
    )
    with pytest.raises(Exception, match="which has 4096"):
        sent.get(timeout=60)
    assert service.AsyncResult(errback_id).get(timeout=60)["state"] == "D"


def test_a_group_collects_all_results(service):
    one = signature(TASK, kwargs={"model": "null", "prompt": "x", "max_tokens": 3}, app=service).set(
        queue=QUEUE
    )
    results = group([one.clone() for _ in range(5)], app=service).apply_async().get(timeout=60)
    assert [len(result["choices"][0]["token_ids"]) for result in results] == [3] * 5


@pytest.fixture
def events(service):
    """All events of the stack by job and type, after the first heartbeat."""
    seen: dict[str, dict[str, dict]] = defaultdict(dict)
    receivers = []

    def note(event):
        seen[event.get("uuid", "worker")][event["type"]] = event

    def capture():
        with service.connection() as connection:
            receivers.append(service.events.Receiver(connection, handlers={"*": note}))
            # Captures without a limit, because events between two captures would be lost.
            receivers[0].capture(limit=None, timeout=None, wakeup=False)

    thread = threading.Thread(target=capture)
    thread.start()
    try:
        assert wait_until(lambda: "worker-heartbeat" in seen["worker"], 60)
        yield seen
    finally:
        receivers[0].should_stop = True
        thread.join()


def test_every_job_has_its_own_events(service, events):
    """The events that Flower shows: received, started, and succeeded with a separate runtime per job."""
    sent = [send(service, max_tokens=count) for count in (5, 200)]
    for result in sent:
        result.get(timeout=60)
    wanted = {"task-received", "task-started", "task-succeeded"}
    assert wait_until(lambda: all(wanted <= set(events[one.id]) for one in sent), 60)
    short, long = (events[one.id]["task-succeeded"] for one in sent)
    assert short["runtime"] < long["runtime"]
    assert "num_tokens=200" in str(long["result"])


@pytest.mark.parametrize(
    ("command", "arguments", "answer"),
    [
        ("rate_limit", {"task_name": TASK, "rate_limit": "5/m"}, "no rate limit"),
        ("time_limit", {"task_name": TASK, "soft": 5.0, "hard": 9.0}, "no common time limit"),
        ("add_consumer", {"queue": "celery"}, "consumes only its model's queues"),
        ("pool_grow", {"n": 2}, "batch size of a pagefleet worker is fixed"),
        ("pool_shrink", {"n": 2}, "batch size of a pagefleet worker is fixed"),
    ],
)
def test_a_command_that_changes_nothing_says_so(service, fleet, command, arguments, answer):
    (worker,) = fleet.status().workers
    replies = service.control.broadcast(
        command, arguments=arguments, destination=[f"null@{worker.worker_id}"], reply=True, timeout=3, limit=1
    )
    assert answer in replies[0][f"null@{worker.worker_id}"]["error"]
    assert len(send(service, max_tokens=2).get(timeout=60)["choices"][0]["token_ids"]) == 2
