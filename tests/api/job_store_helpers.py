"""What the tests of :class:`JobStore` share: jobs and workers by name, and an ear for what is published."""

from __future__ import annotations

from step_items import StepItem, step_batch, step_replies

from pagefleet.api.contract import keys
from pagefleet.api.contract.messages import (
    Fingerprint,
    GenerateRequest,
    LogEntry,
    SamplingParams,
    WorkerStatus,
    parse_event,
    split_events,
)
from pagefleet.api.protocol.operation_types import Limits

QUEUE, CHANNEL = "m.interactive", "pf:reply:client"
REQUEST = GenerateRequest(model="m", prompt="Hello", sampling=SamplingParams(seed=7), priority=3)
FINGERPRINT = Fingerprint(weights="w", tokenizer="t", dtype="d", backend="b", version="v")
LEASE_S = 60.0


def submit(store, job_id="j", *, max_depth=10, channel=CHANNEL, queue=QUEUE, request=REQUEST):
    return store.submit(job_id, request, queue=queue, channel=channel, limits=Limits(max_depth, 10**6))


def beat(store, worker_id, lease_s=LEASE_S):
    status = WorkerStatus(worker_id=worker_id, model="m", host="h", pid=1, started_at=0.0)
    store.beat(status, lease_s)


def die(store, worker_id):
    """Its lease is over: nobody trusts it any more. (What it still sends, arrives.)"""
    store.redis.delete(keys.lease(worker_id))


def claim(store, job_id="j", worker_id="w1"):
    (reply,) = store.claim([job_id], worker_id, FINGERPRINT.model_dump_json())
    return reply


def item(base, num_tokens, *, job_id="j", epoch=1, choice=0, reason=None, accepted=None):
    ids = list(range(base, base + num_tokens))
    entry = LogEntry(
        choice=choice, offset=base, token_ids=ids, texts=[f"<{i}>" for i in ids], finish_reason=reason
    )
    return StepItem(job_id, epoch, choice, base, entry, accepted)


def entry_of(sent):
    """The entry of an item, as a reader gets it."""
    return parse_event("t", sent.entry.to_json())


def step(store, *items, worker_id="w1"):
    replies = step_replies(store.step(worker_id, step_batch(items)))
    return replies[0] if len(items) == 1 else replies


def running(store, job_id="j", worker_id="w1"):
    """A job that a live worker holds with epoch 1."""
    submit(store, job_id)
    beat(store, worker_id)
    assert claim(store, job_id, worker_id).epoch == 1


def everything(store):
    """All that the server holds, to see that something changed nothing."""
    dump = {}
    for key in sorted(store.redis.keys("*")):
        kind = store.redis.type(key)
        dump[key] = {
            "hash": store.redis.hgetall,
            "list": lambda key: store.redis.lrange(key, 0, -1),
            "zset": lambda key: store.redis.zrange(key, 0, -1, withscores=True),
            "set": store.redis.smembers,
            "string": store.redis.get,
        }[kind](key)
    return dump


class Ear:
    """Hears everything that is published."""

    def __init__(self, store):
        self._pubsub = store.redis.pubsub()
        self._pubsub.psubscribe("pf:*")
        assert self._pubsub.get_message(timeout=5)["type"] == "psubscribe"

    def messages(self):
        heard = []
        while (message := self._pubsub.get_message(timeout=0.05)) is not None:
            heard.append((message["channel"], message["data"]))
        return heard

    def events(self):
        return [
            (channel, job_id, parse_event(kind, body))
            for channel, data in self.messages()
            for job_id, kind, body in split_events(data)
        ]

    def close(self):
        self._pubsub.close()
