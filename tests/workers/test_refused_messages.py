"""Messages of a plain Celery app that cannot become jobs: ``get()`` raises the reason."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta

import pytest
import redis
from celery import chain, chord, signature
from celery.exceptions import TaskRevokedError

from pagefleet.api.contract import keys
from pagefleet.workers.threads.polling import wait_until

QUEUE = keys.queue("null", "interactive")
TASK = "pagefleet.generate"
KWARGS = {"model": "null", "max_tokens": 3}


@pytest.fixture
def raw(null_stack):
    with redis.Redis.from_url(null_stack.redis_url) as client:
        yield client


def generate(service, *args, **kwargs):
    return signature(TASK, args=args, kwargs={**KWARGS, **kwargs}, app=service).set(queue=QUEUE)


def foreign(service, name):
    return signature(f"foreign_app.{name}", app=service).set(queue="their-tasks")


REFUSED = {
    "unknown task": ({"name": "their.task"}, "unknown task"),
    "two positional arguments": ({"args": ["a", "b"]}, "takes one positional argument, not 2"),
    "a number": ({"args": [7]}, "must be a string .* not int"),
    "a prompt twice": (
        {"args": ["a"], "kwargs": {"prompt": "b"}},
        "prompt: passed by position and by keyword",
    ),
    "two inputs": ({"args": ["a"], "kwargs": {"messages": []}}, "passed by position and by keyword"),
    "an unknown field": ({"args": [{"promt": "a"}]}, "did you mean 'prompt'"),
    "a job's result": ({"args": [{"job_id": "a", "choices": []}]}, "result of another generate job"),
    "compressed": ({"kwargs": {"prompt": "a"}, "compression": "gzip"}, "headers.compression|compression"),
    "another serializer": ({"kwargs": {"prompt": "a"}, "serializer": "pickle"}, "content-type"),
    "a result to be kept for ever": (
        {"kwargs": {"prompt": "a", "result_ttl_s": 10**9}},
        "result_ttl_s: 1000000000 is more than null allows",
    ),
    "another's job": ({"kwargs": {"job_id": "another"}}, "two different jobs"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_callers_get_raises(name, service):
    options, reason = REFUSED[name]
    options = {"name": TASK, "kwargs": {}, **options}
    if options["name"] == TASK:
        options["kwargs"] = {**KWARGS, **options["kwargs"]}
    sent = service.send_task(options.pop("name"), queue=QUEUE, **options)
    with pytest.raises(Exception, match=reason) as caught:
        sent.get(timeout=60)
    assert type(caught.value).__name__ in ("InvalidRequest", "UnknownParameter")
    assert sent.state == "FAILURE"


def test_celerys_first_protocol_has_its_id_in_the_body(service):
    service.conf.task_protocol = 1
    with pytest.raises(Exception, match="was refused"):
        service.send_task(TASK, kwargs={**KWARGS, "prompt": "a"}, queue=QUEUE).get(timeout=60)


def test_a_chain_gives_its_result_as_prompt_or_as_fields(service, foreign_worker, fleet):
    text = chain(foreign(service, "upper").clone(["abc"]), generate(service), app=service).apply_async()
    assert text.get(timeout=60)["state"] == "D"
    assert json.loads(fleet._live.store.read(text.id).fields["request"])["prompt"] == "ABC"
    dict_ = chain(
        foreign(service, "fields").clone(["abc"]),
        signature(TASK, kwargs={"model": "null"}, app=service).set(queue=QUEUE),
        foreign(service, "text_of"),
        app=service,
    ).apply_async()  # fmt: skip
    assert isinstance(dict_.get(timeout=60), str)
    number = chain(foreign(service, "number").clone(), generate(service), app=service).apply_async()
    with pytest.raises(Exception, match="not int"):
        number.get(timeout=60)


def test_the_rest_of_a_chain_fails_with_the_job(service, foreign_worker):
    """A client that waits for the last task by its id has no parent result with the failure."""
    rest = foreign(service, "text_of")
    for first in (
        generate(service, promt="a"),
        generate(service, prompt="x" * 9000),
        generate(service, 1, 2),
    ):
        last = chain(first, rest.clone(), foreign(service, "upper"), app=service).apply_async()
        with pytest.raises(Exception, match=r"did you mean|which has 4096|one positional"):
            service.AsyncResult(last.id).get(timeout=60)


def test_a_chord_hears_of_a_refused_part(service, foreign_worker):
    body = foreign(service, "count_texts")
    good = chord([generate(service, prompt=each) for each in "abc"], body, app=service).apply_async()
    assert good.get(timeout=60) == 3
    bad = chord(
        [generate(service, prompt="a"), generate(service, promt="a")], body, app=service
    ).apply_async()
    with pytest.raises(Exception, match="did you mean"):
        bad.get(timeout=60)


def test_a_refused_message_calls_its_errback(service, foreign_worker):
    errback = foreign(service, "note_error").set(task_id=f"errback-{time.time()}")
    sent = generate(service, 1, 2).apply_async(link_error=errback)
    assert service.AsyncResult(errback.options["task_id"]).get(timeout=60) == f"failed: {sent.id}"


def wait_for_beats(fleet, raw, count=2):
    """A worker's status comes with its beats; the second one from now on counts all earlier messages."""
    (worker,) = fleet.status().workers
    lease = keys.lease(worker.worker_id)
    for _ in range(count):
        expires_at = raw.pexpiretime(lease)
        assert wait_until(lambda at=expires_at: raw.pexpiretime(lease) != at, 60)


def send_garbage(service, fleet, job_id):
    (before,) = fleet.status().workers
    service.send_task("os.system", task_id=job_id, queue=QUEUE, ignore_result=True)
    assert wait_until(lambda: fleet.status().workers[0].num_bad_messages == before.num_bad_messages + 1, 60)


def test_garbage_leaves_a_good_jobs_result_alone(service, fleet, raw):
    """A message with the id of another job, while that runs and after its end."""
    wait_for_beats(fleet, raw)
    running = fleet.generate("x", max_tokens=1200, idle_timeout=60)
    next(running)
    send_garbage(service, fleet, running.job_id)
    assert service.AsyncResult(running.job_id).state == "STARTED"
    assert len(running.result().token_ids) == 1200
    assert service.AsyncResult(running.job_id).get(timeout=60)["state"] == "D"
    send_garbage(service, fleet, running.job_id)
    # Only the result of the job is left.
    raw.delete(keys.job(running.job_id))
    send_garbage(service, fleet, running.job_id)
    assert service.AsyncResult(running.job_id).get(timeout=60)["state"] == "D"


def test_a_message_without_an_id_is_kept_in_part(raw, fleet):
    raw.delete(keys.UNREADABLE)
    broken = [b"{" + b"x" * 5000, json.dumps({"headers": {"task": "x"}, "body": "secret"}).encode()]
    for message in broken:
        raw.lpush(QUEUE, message)
    assert wait_until(lambda: raw.llen(keys.UNREADABLE) == 2, 60)
    newest, oldest = map(json.loads, raw.lrange(keys.UNREADABLE, 0, -1))
    assert (oldest["num_bytes"], len(oldest["begins"])) == (5001, 1024)
    assert "JSON" in oldest["reason"]
    assert "secret" in newest["begins"]
    assert 0 < raw.ttl(keys.UNREADABLE) <= 86400


def test_an_eta_is_kept_as_a_job_that_waits(service, fleet):
    before = fleet.generate("warm", max_tokens=1).result()
    assert before.state == "D"
    begun_at = time.time()
    sent = generate(service, prompt="x").apply_async(countdown=4)
    store = fleet._live.store
    assert wait_until(lambda: store.read(sent.id) is not None, 60)
    record = store.read(sent.id)
    assert (record.state, sent.state) == ("Q", "PENDING")
    assert int(record.fields["not_before"]) >= (begun_at + 3.5) * 1000
    # A stray message does not start it.
    service.send_task(TASK, kwargs={"job_id": sent.id}, task_id=sent.id, queue=QUEUE)
    assert sent.get(timeout=60)["state"] == "D"
    assert store.read(sent.id).times["claimed_at"] >= begun_at + 4
    assert "not_before" not in store.read(sent.id).fields


def test_a_scheduled_job_is_cancelled_by_a_revoke_and_its_chain_fails(service, foreign_worker, fleet):
    sent = chain(generate(service, prompt="x"), foreign(service, "text_of"), app=service).apply_async(
        countdown=60
    )
    assert wait_until(lambda: fleet._live.store.read(sent.parent.id) is not None, 60)
    sent.parent.revoke()
    with pytest.raises(TaskRevokedError):
        sent.parent.get(timeout=60)
    with pytest.raises(Exception, match="was cancelled"):
        service.AsyncResult(sent.id).get(timeout=60)


def test_a_scheduled_job_has_its_callbacks(service, foreign_worker):
    sent = chain(
        generate(service, prompt="x"), foreign(service, "text_of"), app=service
    ).apply_async(countdown=1)  # fmt: skip
    assert isinstance(service.AsyncResult(sent.id).get(timeout=60), str)


def test_expires_before_the_start(service, fleet):
    past = datetime.now(UTC) - timedelta(seconds=5)
    for options in ({"expires": past}, {"countdown": 3, "expires": 1}):
        sent = generate(service, prompt="x").apply_async(**options)
        with pytest.raises(TaskRevokedError, match="expired"):
            sent.get(timeout=60)
    in_time = generate(service, prompt="x").apply_async(expires=60)
    assert in_time.get(timeout=60)["state"] == "D"


@pytest.mark.parametrize("option", ["time_limit", "soft_time_limit"])
def test_a_time_limit_is_a_deadline(service, option):
    sent = generate(service, prompt="x", max_tokens=2000).apply_async(**{option: 1})
    with pytest.raises(Exception, match="deadline passed"):
        sent.get(timeout=60)
