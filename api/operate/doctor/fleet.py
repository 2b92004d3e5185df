"""Checks of the fleet on the server: the scripts, who works there, in which versions, and what waits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from importlib.metadata import version
from typing import Final

import redis

from pagefleet.api.broker.status import num_open
from pagefleet.api.contract import keys
from pagefleet.api.contract.messages import PROTOCOL_VERSION, Fingerprint
from pagefleet.api.operate.doctor.finding import Finding, Patient
from pagefleet.api.protocol.scripts import NAMES, load_script

_RUN_A_WORKER: Final = "start one: pagefleet worker --model {model}"


def scripts(patient: Patient) -> Iterable[Finding]:
    """Each is sent to the server, which compiles it; that runs nothing."""
    check, client = "scripts", patient.store.redis
    shas = [load_script(name).sha for name in NAMES]
    try:
        known = sum(client.script_exists(*shas))
        for name in NAMES:
            client.script_load(load_script(name).source)
    except redis.exceptions.NoPermissionError:
        yield Finding.skipped(check, "this Redis user may not load scripts")
        return
    except redis.ResponseError as error:
        yield Finding.wrong(check, f"the server refuses one: {error}", "use Redis 7.0 or newer, or Valkey")
        return
    yield Finding.ok(check, f"protocol {PROTOCOL_VERSION}, all {len(NAMES)} compile, {known} were known")


def protocol_version(patient: Patient) -> Iterable[Finding]:
    """Cards and leases carry the version of who wrote them."""
    newest = max((each.v for each in (*patient.store.cards(), *patient.store.workers())), default=0)
    if newest > PROTOCOL_VERSION:
        yield Finding.wrong(
            "protocol", f"somebody here speaks {newest}, this is {PROTOCOL_VERSION}", "upgrade pagefleet here"
        )


def workers(patient: Patient) -> Iterable[Finding]:
    found = patient.store.workers()
    if not found:
        yield Finding.warning("workers", "none holds a lease", _RUN_A_WORKER.format(model="..."))
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
        seen = f"workers run {', '.join(sorted(others))}, this is {version('pagefleet')}"
        yield Finding.warning("versions", seen, "upgrade one of the two; within one protocol both work")


def _different(model: str, several: set[Fingerprint]) -> Finding:
    """Weights and tokenizer forbid that one worker goes on with another's job; the rest changes tokens."""
    fields = [
        name
        for name in ("weights", "tokenizer", "dtype", "backend", "version")
        if len({getattr(each, name) for each in several}) > 1
    ]
    seen = f"workers of {model} differ in {', '.join(fields)}"
    if {"weights", "tokenizer"} & set(fields):
        return Finding.wrong(
            "fingerprints",
            f"{seen}: they refuse each other's jobs",
            "one --served-name for each set of weights",
        )
    return Finding.warning("fingerprints", f"{seen}: a takeover may change tokens", "start all of them alike")


def waiting_jobs(patient: Patient) -> Iterable[Finding]:
    """Models whose jobs nobody will run."""
    served = {worker.model for worker in patient.store.workers()}
    for card in patient.store.cards():
        waiting = sum(num_open(patient.store, card.name, lane) for lane in keys.LANES)
        if waiting and card.name not in served:
            yield Finding.wrong(
                "queues",
                f"{waiting} jobs for {card.name}, and no worker",
                _RUN_A_WORKER.format(model=card.name),
            )


def dead_letters(patient: Patient) -> Iterable[Finding]:
    letters = len(patient.store.dead_letters())
    if letters:
        yield Finding.warning("dead letters", f"{letters}", "see pagefleet dead list")
