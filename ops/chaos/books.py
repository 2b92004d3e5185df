"""Checks after a round: the durable state agrees with the streams, and nothing is left behind."""

from __future__ import annotations

import functools
import json
import re
import urllib.request
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from ops.chaos.fleet import ChaosFleet, Resources
from ops.chaos.workload import Outcome
from pagefleet.api.broker.status import num_queued
from pagefleet.api.contract import keys
from pagefleet.workers.local.gateway_process import GatewayProcess
from pagefleet.workers.threads.polling import wait_until

SETTLE_S: Final = 20.0
MORE_THREADS: Final = 2
"""Celery's side pool has two threads, which come with its first small task."""
MORE_CONNECTIONS: Final = 9
"""A pool keeps as many connections as threads have ever waited at once: after an outage these may be all nine
threads of a worker. More is a leak."""

# Keys that may exist without an expiry while nothing runs:
#   pf:models, pf:model:<name>   the known models and their cards
#   pf:workers                   workers and tombstones, which their reaper forgets after an hour
#   _kombu.binding*              which queue hangs on which exchange
# Everything else without an expiry is a fault: jobs, logs, results, ledgers (pf:open:*, pf:tenant:*),
# messages (<queue>, pf:unacked*:*), dead letters. Leases, client leases and locks have an expiry.
_STANDING: Final = re.compile(r"pf:models|pf:model:.+|pf:workers|_kombu\.binding.*")


def wrong_records(fleet: ChaosFleet, calm: Mapping[str, Outcome]) -> list[str]:
    """Return the jobs whose log or Celery result differs from the calm run, or whose log repeats an index."""
    wrong = []
    for job_id, outcome in calm.items():
        record = fleet.retry(functools.partial(fleet.store.read, job_id))
        if record is None:
            wrong.append(f"{job_id}: no hash")
            continue
        lengths: Counter[int] = Counter()
        for entry in record.entries:
            if entry.offset != lengths[entry.choice]:
                wrong.append(f"{job_id}: log entry at {entry.offset}, not {lengths[entry.choice]}")
            lengths[entry.choice] = entry.offset + len(entry.token_ids)
        result = record.result()
        if _outcome(result.model_dump()) != outcome:
            wrong.append(f"{job_id}: the log has {result.finish_reason} with {len(result.token_ids)} tokens")
        if _celery_result(fleet, job_id) != outcome:
            wrong.append(f"{job_id}: Celery's result differs")
    return wrong


def _celery_result(fleet: ChaosFleet, job_id: str) -> Outcome | None:
    text = fleet.store.redis.get(f"celery-task-meta-{job_id}")
    meta = json.loads(text) if text else {}
    if meta.get("status") != "SUCCESS":
        return None
    return _outcome(meta["result"])


def _outcome(result: Mapping[str, Any]) -> Outcome:
    first, *others = (
        Outcome(choice["token_ids"], choice["text"], choice["finish_reason"]) for choice in result["choices"]
    )
    return first._replace(others=tuple(others))


def complaints_at_rest(fleet: ChaosFleet, baseline: Resources, timeout_s: float = SETTLE_S) -> list[str]:
    """Return what is still wrong after ``timeout_s`` without jobs; empty as soon as all is in order."""
    found: list[str] = []

    def is_clean() -> bool:
        fleet.start_unreached()
        found[:] = _look(fleet, baseline)
        return not found

    wait_until(is_clean, timeout_s, poll_s=0.1)
    return found


def _look(fleet: ChaosFleet, baseline: Resources) -> list[str]:
    found = []
    for index, status in enumerate(fleet.statuses()):
        if status is None:
            found.append(f"worker {index} holds no lease")
            continue
        if status.num_running or status.num_waiting:
            found.append(f"worker {index} runs {status.num_running}, {status.num_waiting} wait")
        if status.num_free_blocks != status.num_blocks:
            found.append(f"worker {index}: {status.num_free_blocks} of {status.num_blocks} blocks are free")
        held = fleet.resources(index)
        if held.num_threads > baseline.num_threads + MORE_THREADS:
            found.append(f"worker {index}: {held.num_threads} threads, {baseline.num_threads} before")
        if held.num_connections > baseline.num_connections + MORE_CONNECTIONS:
            found.append(
                f"worker {index}: {held.num_connections} connections, {baseline.num_connections} before"
            )
    for index, gateway in enumerate(fleet.gateways):
        num = num_streams(gateway)
        if num is None or num > 0 or gateway.exit_status is not None:
            found.append(f"gateway {index} has {num} streams, exit status {gateway.exit_status}")
    for queue in fleet.queues:
        num = num_queued(fleet.store, queue)
        found += [f"queue {queue} holds {num} messages"] if num else []
    return found + keys_left(fleet)


def num_streams(gateway: GatewayProcess) -> int | None:
    """Return the number of streams that the gateway reports, or None if it does not answer."""
    try:
        with urllib.request.urlopen(f"{gateway.url}/metrics", timeout=5) as reply:
            text = reply.read().decode()
    except OSError:
        return None
    (line,) = re.findall(r"^pagefleet_gateway_streams (\S+)$", text, re.MULTILINE)
    return int(float(line))


def keys_left(fleet: ChaosFleet) -> list[str]:
    """Return the unexpected keys without an expiry."""
    redis = fleet.store.redis
    names = list(redis.scan_iter(count=1000))
    pipeline = redis.pipeline(transaction=False)
    for name in names:
        pipeline.ttl(name)
    return [
        f"key {name} has no expiry"
        for name, ttl in zip(names, pipeline.execute(), strict=True)
        if ttl == -1 and not _STANDING.fullmatch(name)
    ]


def remove_results(fleet: ChaosFleet, job_ids: list[str]) -> None:
    """Remove what a round's jobs leave until it expires, so that the next scan of all keys stays short."""
    names: list[Any] = []
    for job_id in job_ids:
        names += [keys.job(job_id), keys.log(job_id), f"celery-task-meta-{job_id}"]
    fleet.store.redis.unlink(*names)
