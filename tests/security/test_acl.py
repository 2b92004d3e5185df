"""Three users, each with what it needs and no more: the whole fleet runs under them, on a real server."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys

import pytest
import redis
from celery import Celery, chain, chord, signature
from guarded_server import ADMIN, TEMPLATE, captured_events
from prometheus_client import CollectorRegistry

from pagefleet.api import FleetClient
from pagefleet.api.broker.celery_app import make_celery
from pagefleet.api.config.settings import FleetSettings
from pagefleet.api.contract import keys
from pagefleet.api.contract.errors import RedisUnavailable
from pagefleet.api.gateway.access.authentication import ANONYMOUS
from pagefleet.api.gateway.access.keyring import Keyring
from pagefleet.api.gateway.access.rate_limit import take
from pagefleet.api.gateway.access.redis_keys import RedisKeys
from pagefleet.api.operate.exporter import FleetCollector
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.engine.execution.null_executor import null_token
from pagefleet.workers.local.local_stack import WorkerProcess
from pagefleet.workers.threads.polling import wait_until

NULL = ["--model", "null", "--backend", "null", "--null-step-time", "0.02"]
NULL += ["--lease-seconds", "1", "--drain-seconds", "0", "--log-level", "DEBUG"]


def expected(seed, count):
    return [null_token(seed, 0, position) for position in range(count)]


@pytest.fixture
def workers(guarded, tmp_path):
    """Two worker processes that log in as ``worker``."""
    found = [
        WorkerProcess(guarded.url_of("worker"), NULL, log_file=tmp_path / f"worker-{index}.log").start()
        for index in range(2)
    ]
    try:
        for worker in found:
            worker.wait_ready(60)
        yield found
    finally:
        for worker in found:
            worker.terminate()
            worker.wait(60)


@pytest.fixture
def producer(guarded):
    with FleetClient(redis_url=guarded.url_of("producer")) as client:
        yield client


def keys_seen(url):
    ring = Keyring(RedisKeys(FleetSettings(redis_url=url)))
    ring.load()
    ring.close()
    return ring._keys


def test_a_fleet_lives_under_its_users(guarded, workers, producer):
    # A stream, an attached one, a cancel, a delete, a status: nothing is denied.
    assert producer.generate("x", max_tokens=20, seed=1, tenant="t").result().token_ids == expected(1, 20)
    long = producer.generate("x", max_tokens=4000, seed=2, lane="batch")
    next(long)
    with FleetClient(redis_url=guarded.url_of("producer")) as other:
        attached = other.attach(long.job_id)
        assert next(attached).token_ids
        attached.close()
    long.cancel()
    assert long.result().finish_reason == "cancelled"
    long.delete()
    # What a gateway counts for its keys, with the same user.
    store = JobStore(FleetSettings(redis_url=guarded.url_of("producer")))
    limited = ANONYMOUS.model_copy(update={"requests_per_minute": 60})
    assert store.run(take(limited, 1, 0)) == [1, 59, -1]
    assert len(store.redis.zrange(keys.recent_jobs("t"), 0, -1)) == 1
    # What a worker is asked without a job.
    assert producer.detokenize(producer.tokenize("x").token_ids) == "<|bos|>x"
    store.close_connections()
    # Keys in Redis: written by who may write all of ours, read by a gateway.
    written = RedisKeys(FleetSettings(redis_url=guarded.url_of("worker")))
    _, key = written.add(tenant="acme")
    assert keys_seen(guarded.url_of("producer")) == {key.key_id: key}
    assert written.revoke(key.key_id)
    written.close()
    assert len(producer.status().workers) == 2
    # A worker dies with running streams, another leaves: the tokens go on.
    streams = [producer.generate("x", max_tokens=150, seed=index) for index in range(8)]
    for stream in streams:
        next(stream)
    workers[0].send_signal(signal.SIGKILL)
    for index, stream in enumerate(streams):
        assert stream.result().token_ids == expected(index, 150)
    assert max(stream.result().attempts for stream in streams) == 2
    workers[0].wait(60)
    workers[0].start().wait_ready(60)
    streams = [producer.generate("x", max_tokens=150, seed=index) for index in range(8)]
    for stream in streams:
        next(stream)
    workers[1].terminate()
    for index, stream in enumerate(streams):
        assert stream.result().token_ids == expected(index, 150)
    assert workers[1].wait(60) == 0
    with guarded.admin() as admin:
        assert wait_until(lambda: not admin.zcard(keys.open_jobs("pagefleet.null.interactive")), 60)
    assert guarded.denied() == []


def shown_to_the_monitor(guarded, *options):
    status = [sys.executable, "-m", "pagefleet.api.cli.main", "status", *options]
    environment = os.environ | {"REDIS_URL": guarded.url_of("monitor")}
    return subprocess.run(status, env=environment, capture_output=True, text=True, check=True).stdout


def assert_the_exporter_reads_all(url, producer):
    """Ledgers, leases and cards are enough for it."""
    store = JobStore(FleetSettings(redis_url=url))
    registry = CollectorRegistry()
    registry.register(FleetCollector(store))
    mine = {"model": "null", "lane": "interactive"}
    long = producer.generate("x", max_tokens=4000)
    next(long)

    def value(name, **labels):
        return registry.get_sample_value(f"pagefleet_fleet_{name}", labels)

    assert (value("source_up"), value("workers", model="null"), value("open_jobs", **mine)) == (1, 2, 1)
    # Its worker says with the next beat that it has the job.
    assert wait_until(lambda: value("oldest_queued_seconds", **mine) == 0, 60)
    long.cancel()
    long.result()
    store.close_connections()


def test_a_monitor_sees_status_events_and_workers(guarded, workers, producer):
    assert len(json.loads(shown_to_the_monitor(guarded, "--json"))["workers"]) == 2
    assert_the_exporter_reads_all(guarded.url_of("monitor"), producer)
    app = make_celery(FleetSettings(redis_url=guarded.url_of("monitor")))
    with captured_events(app) as seen:
        assert wait_until(lambda: any(event["type"] == "worker-heartbeat" for event in seen), 60)
        producer.generate("x", max_tokens=3).result()
        assert wait_until(lambda: any(event["type"] == "task-succeeded" for event in seen), 60)
        assert len(app.control.inspect(timeout=30.0, limit=len(workers)).ping()) == 2
    app.close()
    assert guarded.denied() == []


PROMPT = "sentinel-prompt-5c1e"
SECRET = ("pf:job:", "pf:log:", "celery-task-meta-", "pf:unacked:", "pagefleet.other.interactive")
"""What the names of keys begin with that hold prompts or answers, messages of other services included."""


def readings_of(name):
    """Every command that gives a part of a key's content away."""
    return [
        ("GET", name), ("GETRANGE", name, 0, -1), ("DUMP", name),
        ("HGETALL", name), ("HGET", name, "request"), ("HMGET", name, "request"), ("HVALS", name),
        ("HSCAN", name, 0), ("LRANGE", name, 0, -1), ("LINDEX", name, 0), ("LPOP", name),
        ("RPOP", name), ("BRPOP", name, 0.01), ("SORT", name), ("COPY", name, "celeryev.mine"),
        ("RENAME", name, "celeryev.mine"), ("OBJECT", "ENCODING", name),
        ("EVAL", "return redis.call('HGETALL', KEYS[1])", 1, name),
    ]  # fmt: skip


def test_no_key_tells_a_monitor_a_prompt_or_an_answer(guarded, workers, producer):
    # Given a job that has ended, one that runs, one that a bare message brought and one that waits as such.
    producer.generate(PROMPT, max_tokens=30, seed=1).result()
    running = producer.generate(PROMPT, max_tokens=4000, seed=1)
    next(running)
    app = make_celery(FleetSettings(redis_url=guarded.url_of("producer")))
    app.send_task(
        "pagefleet.generate", kwargs={"model": "null", "prompt": PROMPT, "max_tokens": 4000},
        queue="pagefleet.null.interactive", ignore_result=True,
    )  # fmt: skip
    app.send_task("pagefleet.generate", kwargs={"prompt": PROMPT}, queue="pagefleet.other.interactive")
    app.close()
    assert wait_until(lambda: len(producer.status().running) == 2, 60)
    # When a monitor tries every key that holds a prompt or an answer.
    with guarded.admin() as admin:
        names = {kind: list(admin.scan_iter(f"{kind}*")) for kind in SECRET}
    assert all(names.values())
    with guarded.client_of("monitor") as monitor:
        for name in itertools.chain.from_iterable(names.values()):
            for command in readings_of(name):
                with pytest.raises(redis.ResponseError, match=r"permission|ACL failure|WRONGTYPE"):
                    monitor.execute_command(*command)
    # Then it is told that the job is there, and no more.
    shown = json.loads(shown_to_the_monitor(guarded, "--json"))
    assert running.job_id in shown["hidden"]
    assert (len(shown["hidden"]), shown["running"]) == (2, [])
    assert running.job_id in shown_to_the_monitor(guarded)
    assert producer.status().hidden == []


def test_celerys_canvas_reaches_foreign_queues(guarded, workers):
    """Links, chains, chords and errbacks of another team's tasks, which no worker of ours consumes."""
    admin_url = f"redis://{ADMIN[0]}:{ADMIN[1]}@127.0.0.1:{guarded.port}/0"
    service = Celery("theirs", broker=admin_url, backend=admin_url)

    def generate(**kwargs):
        kwargs = {"model": "null", "prompt": "x", "max_tokens": 3, **kwargs}
        queue = keys.queue("null", "interactive")
        return signature("pagefleet.generate", kwargs=kwargs, app=service, immutable=True).set(queue=queue)

    def theirs(name, queue="celery"):
        return signature(f"their.{name}", app=service).set(queue=queue)

    generate().apply_async(link=theirs("linked", "linked"))
    chain(generate(), theirs("chained", "chained"), app=service).apply_async()
    chord([generate(), generate()], theirs("body"), app=service).apply_async()
    generate(promt="x").apply_async(link_error=theirs("errback", "errback"))
    with guarded.admin() as admin:
        for queue in ("linked", "chained", "celery", "errback"):
            assert wait_until(lambda queue=queue: admin.llen(queue) == 1, 60), queue
    service.backend.result_consumer.stop()
    service.backend.result_consumer._pubsub = None
    service.backend.client.connection_pool.disconnect()
    service.close()
    assert guarded.denied() == []


def test_a_follow_up_that_cannot_be_sent_fails_and_says_why(guarded, workers):
    """An operator may name the queues in place of all: then nobody waits for a task that never comes."""
    admin_url = f"redis://{ADMIN[0]}:{ADMIN[1]}@127.0.0.1:{guarded.port}/0"
    service = Celery("theirs", broker=admin_url, backend=admin_url)
    (line,) = (line for line in TEMPLATE.read_text().splitlines() if line.startswith("user worker "))
    *others, pushes = re.findall(r"\([^)]*\)", line)
    assert "+lpush" in pushes
    with guarded.admin() as admin:
        admin.execute_command("ACL", "SETUSER", "worker", "clearselectors", *others)
    first = signature(
        "pagefleet.generate",
        kwargs={"model": "null", "prompt": "x", "max_tokens": 3},
        app=service,
        immutable=True,
    ).set(queue=keys.queue("null", "interactive"))
    last = chain(first, signature("their.task", app=service), app=service).apply_async()
    with pytest.raises(Exception, match="could not be sent"):
        service.AsyncResult(last.id).get(timeout=60)
    service.backend.result_consumer.stop()
    service.backend.result_consumer._pubsub = None
    service.backend.client.connection_pool.disconnect()
    service.close()
    guarded.forget_denied()


def test_the_control_channel_tells_a_monitor_no_prompt(guarded, workers, producer):
    """Flower asks workers what they run; a bare message's arguments are its prompt."""
    app = make_celery(FleetSettings(redis_url=guarded.url_of("producer")))
    sent = app.send_task(
        "pagefleet.generate", kwargs={"model": "null", "prompt": PROMPT, "max_tokens": 4000},
        queue="pagefleet.null.interactive", ignore_result=True,
    )  # fmt: skip
    assert wait_until(lambda: len(producer.status().running) == 1, 60)
    app.close()
    monitor = make_celery(FleetSettings(redis_url=guarded.url_of("monitor")))
    inspect = monitor.control.inspect(timeout=30.0, limit=len(workers))
    active = inspect.active()
    told = [active, inspect.active(safe=True), inspect.reserved(), inspect.scheduled(), inspect.stats()]
    told += [inspect.query_task(sent.id), inspect.report(), inspect.conf(with_defaults=True)]
    monitor.close()
    assert [task["id"] for tasks in active.values() for task in tasks] == [sent.id]
    assert all(told)
    assert PROMPT not in json.dumps(told, default=str)


FORBIDDEN = [
    ("producer", "FLUSHALL"),
    ("producer", "CONFIG", "GET", "*"),
    ("producer", "KEYS", "*"),
    ("producer", "SCAN", "0"),
    ("producer", "GET", "another-service"),
    ("producer", "SET", "another-service", "1"),
    ("producer", "SET", "pf:model:null", "{}"),
    ("producer", "ZADD", "pf:workers", "1", "me"),
    ("producer", "SET", "pf:lease:w", "{}"),
    ("producer", "HSET", "pf:unacked:w", "a", "b"),
    ("producer", "PUBLISH", "/0.celery.pidbox", "{}"),
    ("producer", "BRPOP", "pagefleet.null.interactive", "0.01"),
    ("producer", "BLPOP", "pagefleet.null.interactive", "0.01"),
    ("producer", "BLPOP", "pf:questions:null", "0.01"),
    ("producer", "HSET", "pf:keys", "1a2b3c4d", "{}"),
    ("producer", "LRANGE", "pf:unreadable", "0", "-1"),
    ("producer", "SCRIPT", "FLUSH"),
    ("producer", "EVAL", "return redis.call('GET', 'another-service')", "0"),
    ("producer", "ACL", "LIST"),
    ("worker", "FLUSHALL"),
    ("worker", "CONFIG", "SET", "maxmemory", "1"),
    ("worker", "GET", "another-service"),
    ("worker", "SCRIPT", "FLUSH"),
    ("monitor", "SET", "pf:client:me", "1"),
    ("monitor", "HMGET", "pf:keys", "stamp"),
    ("monitor", "HSET", "pf:job:a", "state", "D"),
    ("monitor", "HMGET", "pf:job:a", "state"),
    ("monitor", "GET", "celery-task-meta-a"),
    ("monitor", "SUBSCRIBE", "pf:reply:a"),
    ("monitor", "PSUBSCRIBE", "*"),
    ("monitor", "DEL", "pf:job:a"),
    ("monitor", "LPUSH", "pagefleet.null.interactive", "{}"),
    ("monitor", "LRANGE", "pf:log:a", "0", "-1"),
    ("monitor", "LRANGE", "pf:unreadable", "0", "-1"),
    ("monitor", "HMGET", "another-service", "x"),
    ("monitor", "EVAL", "return redis.call('DEL', 'pf:models')", "0"),
    ("monitor", "FLUSHALL"),
]


@pytest.mark.parametrize("command", FORBIDDEN, ids=" ".join)
def test_what_is_not_needed_is_denied(guarded_for_all, command):
    user, *words = command
    with guarded_for_all.client_of(user) as client, pytest.raises(redis.ResponseError) as caught:
        client.execute_command(*words)
    assert isinstance(caught.value, redis.exceptions.NoPermissionError) or "ACL failure" in str(caught.value)


def test_a_worker_may_run_every_command_of_every_script():
    """Some stand on paths that only a broken hash or a death leads to."""
    folder = TEMPLATE.parents[2] / "api" / "protocol" / "scripts"
    scripts = "\n".join(path.read_text() for path in folder.glob("*.lua"))
    used = {name.lower() for name in re.findall(r"redis\.call\('(\w+)'", scripts)}
    (worker,) = (line for line in TEMPLATE.read_text().splitlines() if line.startswith("user worker "))
    assert len(used) > 20
    assert used - {word.removeprefix("+") for word in worker.split() if word.startswith("+")} == set()


def test_nobody_comes_in_without_a_name(guarded_for_all):
    with pytest.raises(RedisUnavailable, match="Authentication required"):
        FleetClient(redis_url=f"redis://127.0.0.1:{guarded_for_all.port}/0").models()


def test_a_user_who_lacks_a_right_gets_one_clear_sentence(guarded_for_all):
    url = guarded_for_all.url_of("monitor")
    with pytest.raises(RedisUnavailable, match="does not allow") as caught:
        FleetClient(redis_url=url).generate("x", model="null")
    assert "sentinel" not in str(caught.value)
    assert "ops/redis/users.acl" in str(caught.value)
