"""Bad things on the queues, in the hashes and on the control channel: the worker lives, good jobs are exact.

``PAGEFLEET_GARBAGE_EXAMPLES`` says how many bad things; ``make garbage`` asks for 10,000.
"""

from __future__ import annotations

import base64
import json
import os
import uuid

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pagefleet.api.contract import keys
from pagefleet.engine.execution.null_executor import null_token
from pagefleet.workers.threads.polling import wait_until

NUM_EXAMPLES = int(os.environ.get("PAGEFLEET_GARBAGE_EXAMPLES", "300"))
QUEUE = "pagefleet.null.interactive"
SENTINEL = "sentinel-prompt-of-nobody"

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just(10**400)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def envelope(kwargs, *, job_id=None, task=keys.GENERATE_TASK, args=(), embed=None, **headers):
    """A task message as kombu writes it."""
    body = json.dumps([list(args), kwargs, embed or {}])
    job_id = job_id or str(uuid.uuid4())
    return {
        "body": base64.b64encode(body.encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "py", "task": task, "id": job_id, "retries": 0, **headers},
        "properties": {
            "correlation_id": job_id, "delivery_mode": 2, "priority": 0, "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()), "delivery_info": {"exchange": "", "routing_key": QUEUE},
        },
    }  # fmt: skip


def good_kwargs():
    return {"model": "null", "prompt": SENTINEL, "max_tokens": 2, "detached": True}


@st.composite
def broken_envelopes(draw):
    """A good message with one part replaced or taken away."""
    message = envelope(good_kwargs())
    part = draw(st.sampled_from([message, message["headers"], message["properties"]]))
    name = draw(
        st.sampled_from(sorted(part)) | st.sampled_from(["eta", "expires", "timelimit", "compression"])
    )
    if draw(st.booleans()):
        part.pop(name, None)
    else:
        part[name] = draw(values)
    return json.dumps(message).encode()


broken_kwargs = st.dictionaries(
    st.sampled_from(
        ["model", "prompt", "max_tokens", "temperature", "v", "job_id", "sampling", "stop", "seed"]
    ),
    values | st.just(SENTINEL),
    max_size=4,
).map(lambda kwargs: json.dumps(envelope(kwargs)).encode())
bodies = st.binary(max_size=30).map(
    lambda body: json.dumps(envelope({}) | {"body": base64.b64encode(body).decode()}).encode()
)
messages = st.one_of(
    st.binary(max_size=40), values.map(lambda value: json.dumps(value).encode()), broken_envelopes(),
    broken_kwargs, bodies,
)  # fmt: skip


def is_served(fleet, seed=7):
    """A good job ends exactly."""
    result = fleet.generate("x", max_tokens=4, seed=seed, idle_timeout=60).result()
    return result.token_ids == [null_token(seed, 0, position) for position in range(4)]


def num_bad(fleet):
    (worker,) = fleet.status().workers
    return worker.num_bad_messages


@pytest.fixture(scope="module")
def raw(stack):
    with redis.Redis.from_url(stack.redis_url) as client:
        yield client


def test_whatever_stands_on_the_queue_the_worker_lives(stack, fleet, raw):
    seen = []

    @settings(max_examples=NUM_EXAMPLES, deadline=None, database=None, derandomize=True,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(messages, st.sampled_from([QUEUE, "pagefleet.null.batch", QUEUE + "\x06\x163"]))
    def send(message, queue):
        raw.lpush(queue, message)
        seen.append(message)
        if len(seen) % 50 == 0:
            assert is_served(fleet)

    send()
    assert is_served(fleet)
    assert wait_until(lambda: not raw.llen(QUEUE) and not raw.llen("pagefleet.null.batch"), 60)
    assert stack.workers[0].exit_status is None
    assert wait_until(lambda: num_bad(fleet) > NUM_EXAMPLES / 10, 60)
    log = stack.workers[0].read_log()
    assert SENTINEL not in "\n".join(log)

    def num_logged():
        return sum("is dropped" in line or "is refused" in line for line in stack.workers[0].read_log())

    # The count comes with the worker's next beat.
    assert wait_until(lambda: num_bad(fleet) == num_logged(), 60)


NAMED = {
    "not JSON": b"{",
    "broken UTF-8": b"\xff\xfe{}",
    "deep": b"[" * 100_000,
    "no object": b"[1]",
    "unknown task": json.dumps(envelope(good_kwargs(), task="os.system")).encode(),
    "pickle": json.dumps(envelope({}) | {"content-type": "application/x-python-serialize"}).encode(),
    "compressed": json.dumps(envelope(good_kwargs(), compression="application/x-gzip")).encode(),
    "delayed": json.dumps(envelope(good_kwargs(), eta="soon")).encode(),
    "an id in the body alone": json.dumps(
        {"body": base64.b64encode(json.dumps({"id": "in-the-body"}).encode()).decode()}
    ).encode(),
    "delayed and of a job": json.dumps(
        envelope({"job_id": "a"}, job_id="a", eta="2100-01-01T00:00:00")
    ).encode(),
    "two jobs": json.dumps(envelope({"job_id": "another"})).encode(),
    "time limits": json.dumps(envelope(good_kwargs(), timelimit=[1])).encode(),
    "expiry": json.dumps(envelope(good_kwargs(), expires="soon")).encode(),
    "10 MB": json.dumps(envelope(good_kwargs() | {"prompt": SENTINEL * 400_000})).encode(),
}


def id_of(message):
    if b"headers" not in message and b"body" in message:
        return "in-the-body"
    try:
        return json.loads(message)["headers"]["id"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


@pytest.mark.parametrize("name", NAMED)
def test_a_bad_message_is_counted_and_answered(name, fleet, raw):
    """With a failed result where its id can be read, else with a place among what nobody can read."""
    before, message = num_bad(fleet), NAMED[name]
    raw.delete(keys.UNREADABLE)
    raw.lpush(QUEUE, message)
    assert wait_until(lambda: num_bad(fleet) == before + 1, 60)
    job_id = id_of(message)
    if job_id is not None:
        assert wait_until(lambda: raw.get(keys.result(job_id)) is not None, 60)
        assert json.loads(raw.get(keys.result(job_id)))["status"] == "FAILURE"
    assert raw.llen(keys.UNREADABLE) == (job_id is None)
    assert is_served(fleet)


def test_a_bare_request_beyond_the_limit_or_of_a_newer_version_is_refused(stack, fleet, raw):
    from pagefleet.api.broker.celery_app import make_celery

    app = make_celery(fleet.settings)
    for change, reason in (({"prompt": "y" * 4_194_304}, "bytes"), ({"v": 99}, "v: unknown parameter")):
        message = envelope(good_kwargs() | change)
        raw.lpush(QUEUE, json.dumps(message))
        with pytest.raises(Exception, match=reason):
            app.AsyncResult(message["headers"]["id"]).get(timeout=60)
    app.close()
    assert is_served(fleet)


@pytest.mark.parametrize(
    "payload",
    [b"{", b"[]", b"\xff", b"{}", json.dumps(envelope({})).encode(),
     json.dumps(envelope({}) | {"body": "!"}).encode()]
    + [
        json.dumps(envelope({}) | {"body": base64.b64encode(json.dumps(command).encode()).decode()}).encode()
        for command in (5, {"method": 5}, {"method": "none"}, {"method": "ping", "destination": 7},
                        {"method": "ping", "arguments": {"x": 1}}, {"method": "revoke", "arguments": {}},
                        {"method": "ping", "reply_to": {"exchange": 1}, "ticket": 5})
    ],
)  # fmt: skip
def test_nonsense_on_the_control_channel_changes_nothing(payload, stack, fleet, raw):
    assert raw.publish("/0.celery.pidbox", payload) >= 1
    assert is_served(fleet)
    assert stack.workers[0].exit_status is None


@pytest.mark.parametrize("which", [keys.job, keys.log])
def test_a_key_of_another_type_ends_its_own_job_alone(which, stack, fleet, raw):
    ids = []
    for write in (lambda pipe, key: pipe.set(key, "x"), lambda pipe, key: pipe.sadd(key, "x")):
        stream = fleet.generate("x", max_tokens=400, idle_timeout=60)
        ids.append(stream.job_id)
        next(stream)
        with raw.pipeline(transaction=True) as pipe:
            pipe.delete(which(stream.job_id))
            write(pipe, which(stream.job_id))
            pipe.execute()
        stream.close()
    assert is_served(fleet)
    assert wait_until(lambda: not any(raw.zmscore(keys.open_jobs(QUEUE), ids)), 60)
    assert stack.workers[0].exit_status is None


def test_ledger_entries_without_a_job_leave_the_ledger(fleet, raw):
    raw.zadd(keys.open_jobs(QUEUE), {"never-was": 1.0, "x y": 2.0})
    assert wait_until(lambda: not raw.zscore(keys.open_jobs(QUEUE), "never-was"), 60)
    assert is_served(fleet)
