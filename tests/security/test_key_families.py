"""Each user of the template against every family of keys, with names chosen to look like another family."""

from __future__ import annotations

import pytest

from pagefleet.api.contract import keys

UUID = "deadbeef-0000-4000-8000-000000000000"
NAMES = (
    "plain",
    "nightly.batch-17",
    "x.interactive",
    "x.batch\x06\x163",
    "x@h.celery.pidbox",
    "x.reply.celery.pidbox",
    f"{UUID}.reply.celery.pidbox",
    "pagefleet.m.batch",
    "celeryev.x",
    "_kombu.binding.celery.pidbox",
    "pf:models",
    "celery-task-meta-x",
)
"""Job ids, tenants, worker ids and model names."""


def lane_of(name):
    return keys.queue(name, "interactive")


def ours(name):
    """Every family of keys of pagefleet: (key, what a producer may, what a monitor may). Workers may all."""
    return [
        (keys.job(name), "rw", ""),
        (keys.deleted(name), "rw", ""),
        (keys.log(name), "rw", ""),
        (keys.open_jobs(lane_of(name)), "rw", "r"),
        (keys.tenant_jobs(lane_of("m"), name), "rw", ""),
        (keys.stored_jobs(name), "rw", ""),
        (keys.stored_bytes(name), "rw", ""),
        (keys.recent_jobs(name), "rw", ""),
        (keys.suspects(name), "rw", ""),
        (keys.client(name), "rw", ""),
        (keys.DEAD, "rw", "r"),
        (keys.MODELS, "r", "r"),
        (keys.model(name), "r", "r"),
        (keys.WORKERS, "r", "r"),
        (keys.lease(name), "r", "r"),
        (keys.reap_lock(name), "", ""),
        (keys.sweep_lock(lane_of(name)), "", ""),
        (keys.sweep_lock(name), "", ""),
        *((key, "", "") for key in keys.unacked(name).values()),
        (keys.rate(name), "rw", ""),
        (keys.API_KEYS, "r", ""),
        (keys.questions(name), "rw", ""),
        (keys.question(name), "rw", ""),
        (keys.answer(name), "", ""),  # BLPOP only
        (keys.PROBE, "", ""),
        (keys.UNREADABLE, "", ""),
        (f"celery-task-meta-{name}", "rw", ""),
        (f"celery-taskset-meta-{name}", "rw", ""),
        (lane_of(name), "rw", "r"),
        (f"{lane_of(name)}\x06\x163", "rw", "r"),
        (f"_kombu.binding.{lane_of(name)}", "rw", ""),
        (f"_kombu.binding_permanent.{lane_of(name)}", "rw", ""),
    ]


CELERYS = [
    # key, producer, worker, monitor
    ("_kombu.binding.celery.pidbox", "", "rw", "rw"),
    ("_kombu.binding.reply.celery.pidbox", "", "rw", "rw"),
    ("_kombu.binding.celeryev", "", "rw", "rw"),
    ("_kombu.binding_permanent.celeryev", "", "rw", "rw"),
    ("_kombu.binding_deadlines", "", "rw", "rw"),
    ("null@h.celery.pidbox", "", "rw", ""),
    (f"{UUID}.reply.celery.pidbox", "", "rw", "rw"),
    ("celeryev.x", "", "", "rw"),
]
FOREIGN = ("other", "other:x.batch-17", "x.interactive.cache", "nightly.batch-17", "x.reply.celery.pidbox")
OLD_QUEUES = ("null.interactive", "null.batch", "null.interactive\x06\x163", "null.batch\x06\x169")


def may(admin, user, key):
    """What the server would let that user do with a key: 'r', 'w', both or nothing."""
    tried = {"r": ("HMGET", key, "f"), "w": ("SET", key, "v")}
    found = [kind for kind, command in tried.items() if dryrun(admin, user, *command)]
    return "".join(found)


def dryrun(admin, user, *command):
    reply = admin.execute_command("ACL", "DRYRUN", user, *command)
    return reply in (True, "OK")


@pytest.mark.parametrize("name", NAMES)
def test_each_user_has_its_own_families_whatever_their_names_contain(guarded_for_all, name):
    with guarded_for_all.admin() as admin:
        for key, producer, monitor in ours(name):
            rights = {user: may(admin, user, key) for user in ("producer", "worker", "monitor")}
            assert rights == {"producer": producer, "worker": "rw", "monitor": monitor}, key
            # Of a job a monitor learns whether it is there.
            assert dryrun(admin, "monitor", "EXISTS", key) == ("r" in monitor or key == keys.job(name)), key


def test_of_celerys_keys_each_user_has_what_it_uses(guarded_for_all):
    with guarded_for_all.admin() as admin:
        for key, *rights in CELERYS:
            assert [may(admin, user, key) for user in ("producer", "worker", "monitor")] == rights, key
        assert dryrun(admin, "producer", "BLPOP", keys.answer("x.batch"), "1")


def test_keys_of_other_services_are_nobodys(guarded_for_all):
    with guarded_for_all.admin() as admin:
        for key in FOREIGN:
            assert [may(admin, user, key) for user in ("producer", "worker", "monitor")] == ["", "", ""], key
            assert not dryrun(admin, "worker", "BRPOP", key, "1"), key
            # What Celery calls after a job goes to other services' queues.
            pushes = [dryrun(admin, user, "LPUSH", key, "v") for user in ("producer", "worker", "monitor")]
            assert pushes == [False, True, False], key


def test_queues_of_the_version_before_are_the_workers_alone_as_lists(guarded_for_all):
    with guarded_for_all.admin() as admin:
        for key in OLD_QUEUES:
            assert [may(admin, user, key) for user in ("producer", "worker", "monitor")] == ["", "", ""], key
            assert dryrun(admin, "worker", "BRPOP", lane_of("null"), key, "1")
            assert dryrun(admin, "worker", "RPUSH", key, "v")
            for user in ("producer", "monitor"):
                for command in (("LLEN", key), ("LPUSH", key, "v"), ("BRPOP", key, "1")):
                    assert not dryrun(admin, user, *command)
