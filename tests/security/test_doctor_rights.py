"""`pagefleet doctor` lists the rights that a Redis user lacks, on a real server with the template's users."""

from __future__ import annotations

import pytest
from guarded_server import TEMPLATE

from pagefleet.api.config.settings import FleetSettings
from pagefleet.api.operate.doctor.finding import Target
from pagefleet.api.operate.doctor.rights import lacking_rights, rights
from pagefleet.api.operate.doctor.roles import ROLES
from pagefleet.api.operate.doctor.server import configuration
from pagefleet.api.protocol.job_store import JobStore

OF_THE_CONNECTION = {"hello", "auth", "ping", "select", "client|setinfo", "client|setname"}
TRIED_TOGETHER = {"multi", "exec", "watch", "unwatch"}
OF_CHANNELS = {"publish", "subscribe", "unsubscribe", "psubscribe", "punsubscribe"}


@pytest.fixture
def target_of(guarded_for_all):
    stores = []

    def target(user, role=None):
        settings = FleetSettings(redis_url=guarded_for_all.url_of(user))
        stores.append(JobStore(settings))
        return Target(settings, stores[-1], role=role)

    yield target
    for store in stores:
        store.close_connections()


@pytest.mark.parametrize("user", ROLES)
def test_every_command_of_the_template_is_tried(user):
    (line,) = (line for line in TEMPLATE.read_text().splitlines() if line.startswith(f"user {user} "))
    granted = {word[1:] for word in line.split() if word.startswith("+")}
    assert granted - OF_THE_CONNECTION - TRIED_TOGETHER - OF_CHANNELS == ROLES[user].commands


@pytest.mark.parametrize("user", ROLES)
def test_each_user_can_do_its_own_and_nothing_is_left_behind(guarded_for_all, target_of, user):
    with guarded_for_all.admin() as admin:
        before = set(admin.keys())
        assert lacking_rights(target_of(user), ROLES[user]) == []
        assert set(admin.keys()) == before
        if user == "monitor":
            assert admin.script_exists("e0e1f9fabfc9d4800c877a703b823ac0578ff8db") == [True], "return 1"


def test_what_is_lacking_is_named_in_the_words_of_an_acl(target_of):
    (finding,) = rights(target_of("producer", role="worker"))
    assert finding.level == "error"
    assert finding.message == (
        "the user lacks rights of a worker: +type, +pttl, +hdel, +hexists, +rpop, +brpop, +blpop, "
        "+zrevrange, +zrangebyscore, +zrevrangebyscore, +zremrangebyscore, +ltrim, +zcount, +incr, "
        "~*.interactive, ~*.batch, "
        "~pf:unacked:*, &/0.celery.pidbox"
    )
    (finding,) = rights(target_of("monitor", role="producer"))
    for right in ("+set", "+hget", "+eval", "~pf:job:*", "~celery-task-meta-*", "&pf:reply:*"):
        assert right in finding.message


def test_without_a_role_it_says_what_the_user_is_good_for(target_of):
    seen = {user: next(iter(rights(target_of(user)))).message for user in ROLES}
    assert seen == {
        "worker": "sufficient for a worker and a producer",
        "producer": "sufficient for a producer",
        "monitor": "sufficient for a monitor",
    }


def test_one_right_taken_away_is_found(guarded):
    settings = FleetSettings(redis_url=guarded.url_of("producer"))
    store = JobStore(settings)
    for taken, missing in (
        (["-hset"], ["+hset"]),
        (["-set", "-del"], ["+set", "+del"]),
        (["-watch"], ["+watch +unwatch +multi +exec"]),
        (["-evalsha"], ["+evalsha"]),
    ):
        with guarded.admin() as admin:
            admin.execute_command("ACL", "SETUSER", "producer", *taken)
            found = lacking_rights(Target(settings, store), ROLES["producer"])
            left_behind = [key for key in admin.scan_iter() if "doctor" in key]
            admin.execute_command("ACL", "SETUSER", "producer", *(right.replace("-", "+") for right in taken))
        assert (found, left_behind) == (missing, [])
    store.close_connections()


def test_who_may_not_ask_for_the_servers_settings_is_told_once(target_of):
    levels = {finding.check: finding.level for finding in configuration(target_of("worker"))}
    assert levels == {"redis version": "ok", "redis settings": "skipped"}
    assert {finding.level for finding in configuration(target_of("monitor"))} == {"ok"}
