"""Garbage in what the server stores of a job: it ends or is dropped, counted and logged once.

``ops/garbage.md`` says what becomes of each; the jobs beside them end exactly.
"""

from __future__ import annotations

import json
import os
import pprint

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pagefleet.api.broker.celery_app import make_celery
from pagefleet.api.broker.sending import send_message
from pagefleet.api.contract import keys
from pagefleet.api.contract.errors import FleetError
from pagefleet.api.contract.requests import build_request
from pagefleet.api.protocol.operation_types import Limits
from pagefleet.engine.execution.null_executor import null_token
from pagefleet.workers.threads.polling import wait_until

NUM_EXAMPLES = int(os.environ.get("PAGEFLEET_GARBAGE_EXAMPLES", "300"))
QUEUE = "pagefleet.null.interactive"
SEED = 7
LONG = 400
LOGPROB = {"token_id": 1, "logprob": -0.5, "text": "a", "rank": 1}
ENTRY = json.dumps({"offset": 0, "token_ids": [null_token(SEED, 0, 0)], "texts": ["a"]}).encode()


@pytest.fixture(scope="module")
def raw(stack):
    with redis.Redis.from_url(stack.redis_url) as client:
        yield client


@pytest.fixture(scope="module")
def app(fleet):
    app = make_celery(fleet.settings)
    yield app
    app.close()


def tokens(count):
    return [null_token(SEED, 0, position) for position in range(count)]


def is_served(fleet):
    return fleet.generate("x", max_tokens=4, seed=SEED, idle_timeout=60).result().token_ids == tokens(4)


def submit(fleet, job_id, max_tokens=4, **fields):
    """Into the store only: its message is still to be sent."""
    fleet.models()
    request = build_request(
        {"model": "null", "prompt": "x", "seed": SEED, "max_tokens": max_tokens, "detached": True, **fields}
    )
    limits = Limits(10**6, 10**6)
    assert fleet._live.store.submit(job_id, request, queue=QUEUE, channel="", limits=limits).created


def run(fleet, job_id):
    """A job with some tokens in its log, and a worker on it."""
    stream = fleet.generate("x", max_tokens=LONG, seed=SEED, detached=True, job_id=job_id, idle_timeout=60)
    next(stream)
    return stream


def num_bad(fleet):
    (worker,) = fleet.status().workers
    return worker.num_bad_messages


def wait_for_beats(fleet, raw, count=2):
    """What the worker says of itself comes with its beats; the second one from now on is news."""
    (worker,) = fleet.status().workers
    lease = keys.lease(worker.worker_id)
    for _ in range(count):
        expires_at = raw.pexpiretime(lease)
        assert wait_until(lambda at=expires_at: raw.pexpiretime(lease) != at, 60)


def is_idle(fleet, raw):
    """No message is on its way, none unanswered."""
    (worker,) = fleet.status().workers
    return not raw.llen(QUEUE) and not raw.hlen(keys.unacked(worker.worker_id)["unacked_key"])


def complaints(stack, job_id):
    """The log's lines of WARNING and above about the job, but for the sweeper's attempts to save it."""
    return [
        line
        for line in stack.workers[0].read_log()
        if job_id in line.replace(":", " ").split()
        and (" WARNING " in line or " ERROR " in line)
        and "was sent again" not in line
    ]


def is_left(fleet, raw, job_id):
    """Whether anything still holds it: the ledger, a queue, the worker's unacknowledged messages."""
    (worker,) = fleet.status().workers
    held = raw.hvals(keys.unacked(worker.worker_id)["unacked_key"]) + raw.lrange(QUEUE, 0, -1)
    return raw.zscore(keys.open_jobs(QUEUE), job_id) is not None or any(
        job_id.encode() in each for each in held
    )


def check_bad(stack, fleet, raw, job_id, before, state):
    """Gone from everywhere, counted once, logged once, in ``state``; good jobs are served."""
    assert wait_until(lambda: not is_left(fleet, raw, job_id), 60)
    assert wait_until(lambda: num_bad(fleet) == before + 1, 60)
    assert is_served(fleet)
    assert len(complaints(stack, job_id)) == 1
    assert raw.hget(keys.job(job_id), "state") == state
    assert num_bad(fleet) == before + 1
    assert stack.workers[0].exit_status is None


FIELDS = [
    "state", "owner", "epoch", "attempts", "num_choices", "n:0", "n:1", "fin:0", "fin:1", "num_ended",
    "deadline", "request", "queue", "error", "fingerprint", "fingerprints", "suspect", "cancel", "clients",
    "ttl", "solo", "priority", "tenant_ledger", "channel", "fruitless", "blame", "watched", "tenant",
    "stored", "no-such-field",
]  # fmt: skip
written = st.one_of(
    st.binary(max_size=12),
    st.integers().map(lambda number: str(number).encode()),
    st.floats().map(lambda number: str(number).encode()),
    st.sampled_from(
        [b"Q", b"R", b"D", b"F", b"C", b"X", b"1", b"nan", b"1e300", b"{", b"{}", b"[]", b"9" * 400]
    ),
)
entries = written | st.fixed_dictionaries(
    {
        "offset": st.integers(-2, 5),
        "token_ids": st.lists(st.integers(), max_size=3),
        "texts": st.lists(st.text(max_size=3), max_size=3),
    },
    optional={
        "choice": st.integers(-1, 3),
        "finish_reason": st.text(max_size=5),
        "logprobs": st.lists(st.sampled_from([{}, 1, LOGPROB]), max_size=3),
        "prompt_logprobs": st.lists(st.sampled_from([{}, 1, LOGPROB]), max_size=3),
    },
).map(lambda entry: json.dumps(entry).encode())
several = st.sampled_from([{}, {}, {"n": 2}, {"logprobs": 1}, {"n": 2, "logprobs": 0, "prompt_logprobs": 0}])
damages = st.one_of(
    st.tuples(st.just("field"), st.sampled_from(FIELDS), written),
    st.tuples(st.just("no field"), st.sampled_from(FIELDS)),
    st.tuples(st.just("entry"), entries),
    st.tuples(st.just("command"), written),
    st.sampled_from([("no hash",), ("no log",)]),
)


def damage(raw, job_id, what, *values):
    """Writes into what the server holds of a job, or onto the control channel."""
    if what == "field":
        raw.hset(keys.job(job_id), *values)
    elif what == "no field":
        raw.hdel(keys.job(job_id), *values)
    elif what == "entry":
        raw.rpush(keys.log(job_id), *values)
    elif what == "command":
        raw.publish("/0.celery.pidbox", *values)
    else:
        raw.delete(keys.job(job_id) if what == "no hash" else keys.log(job_id))


def test_whatever_is_written_over_jobs_the_worker_lives_and_nothing_stays(stack, fleet, raw, app):
    """Before the message goes out, while the job runs, or with no message at all: the sweeper finds it."""
    job_ids, done = [], {}

    @settings(max_examples=NUM_EXAMPLES, deadline=None, database=None, derandomize=True,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(damages, st.sampled_from(["queued", "running", "unsent"]), several)
    def write(change, when, asked):
        job_ids.append(job_id := f"whatever-{len(job_ids)}")
        done[job_id] = when, *change
        submit(fleet, job_id, max_tokens=60 if when == "running" else 4, **asked)
        if when == "running":
            send_message(app, job_id, QUEUE, 5)
        damage(raw, job_id, *change)
        if when == "queued":
            send_message(app, job_id, QUEUE, 5)
        if len(job_ids) % 50 == 0:
            assert is_served(fleet)

    write()
    assert is_served(fleet)

    def open_jobs():
        ids = [each.decode() for each in raw.zrange(keys.open_jobs(QUEUE), 0, -1)]
        return [(job_id, done.get(job_id), raw.hgetall(keys.job(job_id))) for job_id in ids]

    is_empty = wait_until(lambda: not raw.zcard(keys.open_jobs(QUEUE)), 90, poll_s=0.2)
    assert is_empty, pprint.pformat(open_jobs()[:5])
    assert wait_until(lambda: not any(is_left(fleet, raw, job_id) for job_id in job_ids[-20:]), 60)
    assert stack.workers[0].exit_status is None
    # The tests after this one count from here.
    assert wait_until(lambda: is_idle(fleet, raw), 60)
    wait_for_beats(fleet, raw)
    assert num_bad(fleet) > NUM_EXAMPLES / 10


UNREADABLE = {
    "n:0": b"3", "num_ended": b"-5", "num_choices": b"3", "fin:0": b"stop", "epoch": b"x", "attempts": b"nan",
    "error": b"{", "ttl": b"1e300", "deadline": b"\xff\xfe",
}  # fmt: skip


@pytest.mark.parametrize(
    ("field", "how"),
    [
        *((field, "queued") for field in UNREADABLE),
        *((field, "running") for field in ("n:0", "fin:0", "epoch")),
        ("num_ended", "unsent"),
    ],
)
def test_a_garbled_field_makes_one_dead_letter(field, how, stack, fleet, raw, app):
    job_id, before = f"{how}-{field}".replace(":", "-"), num_bad(fleet)
    if how == "running":
        run(fleet, job_id).close()
        # Else what is written below might be what stands there.
        assert wait_until(lambda: int(raw.hget(keys.job(job_id), "n:0")) > int(UNREADABLE["n:0"]), 60)
    else:
        submit(fleet, job_id)
    raw.hset(keys.job(job_id), field, UNREADABLE[field])
    if how == "queued":
        send_message(app, job_id, QUEUE, 5)
    check_bad(stack, fleet, raw, job_id, before, b"X")
    assert raw.zscore(keys.DEAD, job_id) is not None
    assert raw.exists(f"celery-task-meta-{job_id}")


@pytest.mark.parametrize("how", ["queued", "running"])
def test_half_a_token_is_none(how, stack, fleet, raw, app):
    """Neither behind nor ahead of what the worker sends: it sent again and again."""
    job_id, before = f"half-{how}", num_bad(fleet)
    if how == "running":
        run(fleet, job_id).close()
    else:
        submit(fleet, job_id)
    raw.hset(keys.job(job_id), "n:0", b"0.5")
    if how == "queued":
        send_message(app, job_id, QUEUE, 5)
    check_bad(stack, fleet, raw, job_id, before, b"X")


@pytest.mark.parametrize("value", [b"-5", b"99999999999999999999"])
def test_a_priority_that_is_none_is_not_sent_again_and_again(value, stack, fleet, raw):
    job_id, before = f"priority-{value.decode()}", num_bad(fleet)
    submit(fleet, job_id)
    raw.hset(keys.job(job_id), "priority", value)
    check_bad(stack, fleet, raw, job_id, before, b"X")


@pytest.mark.parametrize("value", [b"pagefleet.null.batch", b"\xff\xfe"])
def test_a_job_whose_hash_names_another_queue_is_closed_in_its_own(value, stack, fleet, raw, app):
    job_id, before = f"queue-{value.hex()}", num_bad(fleet)
    submit(fleet, job_id)
    raw.hset(keys.job(job_id), "queue", value)
    send_message(app, job_id, QUEUE, 5)
    check_bad(stack, fleet, raw, job_id, before, b"D")


@pytest.mark.parametrize(
    "request_json", [b'{"v":99,"model":"null","prompt":"x"}', b"{", b"\xff\xfe", b"x" * 10**7]
)
def test_a_request_in_the_hash_that_is_none_fails(request_json, stack, fleet, raw, app):
    """Protocol 99, no JSON, broken UTF-8, 10 MB."""
    job_id, before = f"request-{len(request_json)}", num_bad(fleet)
    submit(fleet, job_id)
    raw.hset(keys.job(job_id), "request", request_json)
    send_message(app, job_id, QUEUE, 5)
    check_bad(stack, fleet, raw, job_id, before, b"F")


@pytest.mark.parametrize("epoch", [b"5", b"0", None])
def test_another_jobs_epoch_ends_the_attempt_and_the_job_goes_on_exactly(epoch, stack, fleet, raw):
    """0 and none make the next attempt's epoch the same as this one's."""
    job_id, before = f"epoch-{epoch}", num_bad(fleet)
    stream = run(fleet, job_id)
    raw.hset(keys.job(job_id), "epoch", epoch) if epoch else raw.hdel(keys.job(job_id), "epoch")
    assert stream.result().token_ids == tokens(LONG)
    check_bad(stack, fleet, raw, job_id, before, b"D")


LOGS = {
    "not JSON": [b"{"],
    "broken UTF-8": [b"\xff\xfe"],
    "negative offset": [json.dumps({"offset": -1, "token_ids": [1], "texts": ["a"]}).encode()],
    "huge offset": [json.dumps({"offset": 10**30, "token_ids": [1], "texts": ["a"]}).encode()],
    "doubled": [ENTRY, ENTRY],
    "missing": [],
}


@pytest.mark.parametrize("name", LOGS)
def test_a_garbled_log_of_a_queued_job_makes_one_dead_letter(name, stack, fleet, raw, app):
    job_id, before = f"log-queued-{name.replace(' ', '-')}", num_bad(fleet)
    submit(fleet, job_id)
    if LOGS[name]:
        raw.rpush(keys.log(job_id), *LOGS[name])
    raw.hset(keys.job(job_id), "n:0", 1)
    send_message(app, job_id, QUEUE, 5)
    check_bad(stack, fleet, raw, job_id, before, b"X")


@pytest.mark.parametrize("name", ["broken UTF-8", "negative offset", "missing"])
def test_a_garbled_log_of_a_running_job_makes_one_dead_letter(name, stack, fleet, raw):
    job_id, before = f"log-running-{name.replace(' ', '-')}", num_bad(fleet)
    run(fleet, job_id).close()
    with raw.pipeline(transaction=True) as pipe:
        # An expired log is one that is not there any more.
        pipe.pexpire(keys.log(job_id), 0)
        if LOGS[name]:
            pipe.rpush(keys.log(job_id), *LOGS[name])
        pipe.execute()
    check_bad(stack, fleet, raw, job_id, before, b"X")
    with pytest.raises(FleetError):
        fleet.attach(job_id, idle_timeout=60).result()


@pytest.mark.parametrize("how", ["queued", "unsent", "running"])
def test_a_deleted_hash_is_dropped(how, stack, fleet, raw, app):
    job_id, before = f"deleted-{how}", num_bad(fleet)
    if how == "running":
        run(fleet, job_id).close()
    else:
        submit(fleet, job_id)
    raw.delete(keys.job(job_id))
    if how == "queued":
        send_message(app, job_id, QUEUE, 5)
    check_bad(stack, fleet, raw, job_id, before, None)
    assert not raw.exists(keys.log(job_id))


def test_a_deleted_hash_whose_client_still_reads_is_begun_anew_and_exact(stack, fleet, raw):
    stream = run(fleet, "deleted-read")
    raw.delete(keys.job("deleted-read"))
    assert stream.result().token_ids == tokens(LONG)
    assert fleet.attach("deleted-read", idle_timeout=60).result().token_ids == tokens(LONG)
    assert stack.workers[0].exit_status is None


def test_garbled_entries_of_a_dead_workers_unacknowledged_messages(stack, fleet, raw):
    """Each is dropped and logged once, by the worker that reaps."""
    names = keys.unacked("nobody")
    bad = [
        b"{",
        b"\xff\xfe",
        b"[]",
        b"5",
        b"null",
        b'["x", "y"]',
        b"[" * 5000,
    ]
    for number, entry in enumerate(bad):
        raw.hset(names["unacked_key"], f"tag-{number}", entry)
        raw.zadd(names["unacked_index_key"], {f"tag-{number}": number})
    raw.zadd(keys.WORKERS, {"nobody": 1.0})
    assert wait_until(lambda: not raw.exists(names["unacked_key"]), 60)
    assert is_served(fleet)
    assert sum("an unacknowledged entry is dropped" in line for line in stack.workers[0].read_log()) == len(
        bad
    )
    assert stack.workers[0].exit_status is None
