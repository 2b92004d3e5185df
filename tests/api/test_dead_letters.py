"""Dead letters: kept, shown, sent again as new jobs, dropped."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from step_items import StepItem, step_batch

from pagefleet.api import JobDead, JobNotFound, JobState
from pagefleet.api.broker.celery_app import make_celery
from pagefleet.api.broker.closing import JobCloser
from pagefleet.api.broker.status import num_queued
from pagefleet.api.cli.dead import dead
from pagefleet.api.contract import keys
from pagefleet.api.contract.messages import LogEntry, WorkerStatus
from pagefleet.api.contract.requests import build_request
from pagefleet.api.operate.dead_letters import DeadLetters
from pagefleet.api.protocol.operation_types import ClaimVerdict, Limits
from pagefleet.api.testing import fake_card

QUEUE = "pagefleet.m.interactive"
CARD = fake_card("m")
OTHER = CARD.fingerprint.model_copy(update={"weights": "other"})


@pytest.fixture
def letters(store):
    store.publish_card(CARD)
    app = make_celery(store.settings)
    yield DeadLetters(store, app, JobCloser(store, app))
    app.close()


def dead_letter(store, job_id="poison"):
    """A job whose worker died in its first prefill, three times."""
    request = build_request({"model": "m", "prompt": "a secret", "seed": 1})
    store.submit(job_id, request, queue=QUEUE, channel="", limits=Limits(10, 10))
    for index in range(4):
        worker_id = f"{job_id}-worker-{index}"
        store.beat(WorkerStatus(worker_id=worker_id, model="m", host="h", pid=1, started_at=0.0), 60)
        (claim,) = store.claim([job_id], worker_id, CARD.fingerprint.model_dump_json())
        if claim.verdict is ClaimVerdict.CLAIMED:
            store.mark(worker_id, {job_id: claim.epoch})
        store.redis.delete(keys.lease(worker_id))
    assert claim.verdict is ClaimVerdict.ENDED
    app = make_celery(store.settings)
    with pytest.raises(JobDead, match="3 workers died"):
        raise JobCloser(store, app).close(job_id).error.to_error(job_id)


def test_it_is_kept_for_a_week_with_its_reason(store, letters):
    dead_letter(store)
    (record,) = letters.all()
    assert record.job_id == "poison"
    assert record.error.message == "The job was given up: 3 workers died while they began this job."
    week_ms = store.settings.dead_letter_ttl_s * 1000
    assert week_ms - 10_000 < store.redis.pttl(keys.job("poison")) <= week_ms
    assert store.redis.zcard(keys.open_jobs(QUEUE)) == 0


def test_requeue_is_a_new_job_with_the_same_request(store, letters):
    dead_letter(store)
    new_id = letters.requeue("poison")
    record = store.read(new_id)
    assert (record.state, record.fields["queue"]) == (JobState.QUEUED, QUEUE)
    assert record.request().prompt == "a secret"
    assert record.request().sampling.seed == 1
    assert record.fields["clients"] == ""
    assert num_queued(store, QUEUE) == 1
    assert letters.all() == []
    assert store.read("poison") is None


def refused_letter(store):
    """Two choices, the first one ended; until its deadline only workers with other weights asked for it."""
    request = build_request({"model": "m", "prompt": "a secret", "seed": 1, "n": 2})
    store.submit("old", request, queue=QUEUE, channel="", limits=Limits(10, 10))
    store.beat(WorkerStatus(worker_id="w1", model="m", host="h", pid=1, started_at=0.0), 60)
    store.claim(["old"], "w1", CARD.fingerprint.model_dump_json())
    first = LogEntry(choice=0, offset=0, token_ids=[7, 8], texts=["a", "b"], finish_reason="stop")
    second = LogEntry(choice=1, offset=0, token_ids=[9], texts=["c"])
    store.step("w1", step_batch([StepItem("old", 1, 0, 0, first, 5), StepItem("old", 1, 1, 0, second)]))
    store.release("old", "w1", 1)
    (claim,) = store.claim(["old"], "w1", OTHER.model_dump_json())
    assert claim.verdict is ClaimVerdict.REFUSED
    store.redis.hset(keys.job("old"), "deadline", "1")
    assert store.expire("old")
    store.close("old", QUEUE)


def test_requeue_of_a_refused_job_goes_on_with_its_tokens(store, letters):
    refused_letter(store)
    (letter,) = letters.all()
    assert "begun with other weights" in letter.error.message
    new_id = letters.requeue("old")
    record = store.read(new_id)
    assert (record.state, record.num_tokens, record.num_prompt_tokens) == (JobState.QUEUED, [2, 1], 5)
    assert [record.finish_reason(choice) for choice in (0, 1)] == ["stop", None]
    assert record.fingerprints == [CARD.fingerprint]
    assert store.redis.ttl(keys.log(new_id)) == -1
    assert (letters.all(), store.read("old")) == ([], None)
    # For other weights it is what it was; a worker with its own goes on.
    (claim,) = store.claim([new_id], "w1", OTHER.model_dump_json())
    assert claim.verdict is ClaimVerdict.REFUSED
    (claim,) = store.claim([new_id], "w1", CARD.fingerprint.model_dump_json())
    assert (claim.verdict, claim.num_tokens) == (ClaimVerdict.CLAIMED, (2, 1))


def test_requeue_from_the_start_lets_other_weights_begin_it(store, letters):
    refused_letter(store)
    command = ["requeue", "old", "--from-start", "--redis-url", store.settings.url]
    new_id = CliRunner().invoke(dead, command).output.strip()
    assert store.read(new_id).num_tokens == [0, 0]
    (claim,) = store.claim([new_id], "w1", OTHER.model_dump_json())
    assert claim.verdict is ClaimVerdict.CLAIMED


def test_drop_leaves_nothing(store, letters):
    dead_letter(store)
    letters.drop("poison")
    assert letters.all() == []
    assert store.read("poison") is None
    assert not store.redis.exists("celery-task-meta-poison")
    for call in (letters.get, letters.drop, letters.requeue):
        with pytest.raises(JobNotFound):
            call("poison")


def test_only_dead_letters_can_be_dropped(store, letters):
    request = build_request({"model": "m", "prompt": "x", "seed": 1})
    store.submit("alive", request, queue=QUEUE, channel="", limits=Limits(10, 10))
    with pytest.raises(JobNotFound):
        letters.drop("alive")
    assert store.read("alive").state is JobState.QUEUED


def test_one_that_expired_is_not_listed(store, letters):
    dead_letter(store)
    store.redis.delete(keys.job("poison"))
    assert letters.all() == []
    assert store.redis.zcard(keys.DEAD) == 0


def test_the_command(store, letters):
    dead_letter(store, "one")
    dead_letter(store, "two")

    def run(*arguments):
        command = [*arguments, "--redis-url", store.settings.url]
        result = CliRunner().invoke(dead, command, env={"COLUMNS": "200"})
        assert result.exit_code == 0, result.output
        return result.output

    listed = run("list")
    assert "one" in listed
    assert "3 workers died" in listed
    # A list is looked at over a shoulder; the prompt takes asking for.
    assert "a secret" not in listed
    assert "a secret" in run("show", "one")
    new_id = run("requeue", "one").strip()
    assert store.read(new_id).state is JobState.QUEUED
    assert run("drop", "two") == "dropped two\n"
    assert letters.all() == []


def test_the_list_as_json_has_the_reason_and_no_prompt(store):
    dead_letter(store)
    done = CliRunner().invoke(dead, ["list", "--json", "--redis-url", store.settings.url])
    (letter,) = json.loads(done.output)
    assert (letter["job_id"], letter["state"]) == ("poison", "X")
    assert "3 workers died" in letter["error"]["message"]
    assert "a secret" not in done.output
