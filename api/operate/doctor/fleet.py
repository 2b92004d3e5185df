"""Checks of the fleet: scripts, protocol version, workers and their versions, waiting jobs, dead letters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from importlib.metadata import version
from typing import Final

import redis

from pagefleet.api.broker.status import num_open
from pagefleet.api.contract import keys
from pagefleet.api.contract.messages import PROTOCOL_VERSION, Fingerprint
from pagefleet.api.operate.doctor.finding import Finding, Target
from pagefleet.api.protocol.scripts import NAMES, load_script

_RUN_A_WORKER: Final = "start a worker: pagefleet worker --model {model}"


def scripts(target: Target) -> Iterable[Finding]:
    """Load each script into the server, which compiles it and does not run it."""
    check, client = "scripts", target.store.redis
    shas = [load_script(name).sha for name in NAMES]
    try:
        known = sum(client.script_exists(*shas))
        for name in NAMES:
            client.script_load(load_script(name).source)
    except redis.exceptions.NoPermissionError:
        yield Finding.skipped(check, "this Redis user is not allowed to load scripts")
        return
    except redis.ResponseError as error:
        yield Finding.error(
            check, f"the server does not compile a script: {error}", "use Redis 7.0 or newer, or Valkey"
        )
        return
    yield Finding.ok(
        check, f"protocol {PROTOCOL_VERSION}; all {len(NAMES)} scripts compile, {known} were loaded already"
    )


def protocol_version(target: Target) -> Iterable[Finding]:
    """Compare our protocol version with those in model cards and leases."""
    newest = max((each.v for each in (*target.store.cards(), *target.store.workers())), default=0)
    if newest > PROTOCOL_VERSION:
        yield Finding.error(
            "protocol",
            f"the fleet uses protocol {newest}, this installation {PROTOCOL_VERSION}",
            "upgrade this installation of pagefleet",
        )


def workers(target: Target) -> Iterable[Finding]:
    found = target.store.workers()
    if not found:
        yield Finding.warning("workers", "no worker holds a lease", _RUN_A_WORKER.format(model="MODEL"))
        return
    hosts = {worker.host for worker in found}
    models = {worker.model for worker in found}
    yield Finding.ok(
        "workers",
        f"{len(found)} on {len(hosts)} host{'s' * (len(hosts) > 1)}, serving {', '.join(sorted(models))}",
    )
    prints: dict[str, set[Fingerprint]] = defaultdict(set)
    for worker in found:
        if worker.fingerprint is not None:
            prints[worker.model].add(worker.fingerprint)
    for model, several in prints.items():
        if len(several) > 1:
            yield _different(model, several)
    others = {each.version for several in prints.values() for each in several} - {version("pagefleet")}
    if others:
        message = (
            f"workers run pagefleet {', '.join(sorted(others))}, this installation is {version('pagefleet')}"
        )
        yield Finding.warning(
            "versions", message, "upgrade one of them; both work as long as they use the same protocol"
        )


def _different(model: str, several: set[Fingerprint]) -> Finding:
    """Different weights or tokenizers prevent a takeover; other differences can change its tokens."""
    fields = [
        name
        for name in ("weights", "tokenizer", "dtype", "backend", "version")
        if len({getattr(each, name) for each in several}) > 1
    ]
    message = f"workers of {model} differ in {', '.join(fields)}"
    if {"weights", "tokenizer"} & set(fields):
        return Finding.error(
            "fingerprints",
            f"{message}; they cannot continue each other's jobs",
            "give each set of weights its own --served-name",
        )
    return Finding.warning(
        "fingerprints", f"{message}; a takeover can change tokens", "start all of them with the same options"
    )


def waiting_jobs(target: Target) -> Iterable[Finding]:
    """Models that have open jobs and no worker."""
    served = {worker.model for worker in target.store.workers()}
    for card in target.store.cards():
        waiting = sum(num_open(target.store, card.name, lane) for lane in keys.LANES)
        if waiting and card.name not in served:
            yield Finding.error(
                "queues",
                f"{waiting} open job{'s' * (waiting > 1)} for {card.name}, which no worker serves",
                _RUN_A_WORKER.format(model=card.name),
            )


def dead_letters(target: Target) -> Iterable[Finding]:
    letters = len(target.store.dead_letters())
    if letters:
        yield Finding.warning("dead letters", f"{letters} kept", "see them: pagefleet dead list")
