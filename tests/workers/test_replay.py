"""``pagefleet replay`` computes a stored job again, token by token."""

from __future__ import annotations

import pytest
from click.testing import CliRunner
from tiny_gguf import write_gguf

from pagefleet.api.cli.main import main
from pagefleet.api.config.settings import FleetSettings
from pagefleet.api.contract import keys
from pagefleet.api.contract.messages import Fingerprint
from pagefleet.api.protocol.job_record import JobRecord
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.workers.cli.replay import _settings_of
from pagefleet.workers.settings import WorkerSettings

REAL = Fingerprint(
    weights="those-of-the-job", tokenizer="a", dtype="float64", backend="reference", version="1"
)


@pytest.fixture
def replay(null_stack):
    def run(*arguments):
        return CliRunner().invoke(main, ["replay", *arguments, "--redis-url", null_stack.redis_url])

    return run


def test_an_ended_job_comes_out_the_same(fleet, replay):
    stream = fleet.generate("x", max_tokens=20, temperature=1.0)
    stream.result()
    done = replay(stream.job_id)
    assert (done.exit_code, done.output) == (0, "choice 0: the same, 20 of 20 tokens\n")


def test_of_a_cancelled_job_what_there_is(fleet, replay):
    stream = fleet.generate("x", max_tokens=4000)
    for _ in range(3):
        next(stream)
    stream.cancel()
    num_tokens = len(stream.result().token_ids)
    assert replay(stream.job_id).output == f"choice 0: the same, {num_tokens} of {num_tokens} tokens\n"


def test_another_token_and_another_engine_are_named(fleet, replay, null_stack):
    stream = fleet.generate("x", max_tokens=5, seed=1)
    before = stream.result().token_ids
    store = JobStore(FleetSettings(redis_url=null_stack.redis_url))
    log = keys.log(stream.job_id)
    entries = [
        entry.decode() if isinstance(entry, bytes) else entry for entry in store.redis.lrange(log, 0, -1)
    ]
    index = next(i for i, entry in enumerate(entries) if str(before[2]) in entry)
    store.redis.lset(log, index, entries[index].replace(str(before[2]), "33"))
    hash_key = keys.job(stream.job_id)
    store.redis.hset(
        hash_key, "fingerprints", store.redis.hget(hash_key, "fingerprints").replace("none", "int1")
    )
    store.close_connections()
    done = replay(stream.job_id)
    assert done.exit_code == 1
    assert "dtype: the job was computed with int1, this worker has none\n" in done.output
    assert f"differs at token 2 of 5: the job has 33 '!', the replay {before[2]}" in done.output


def test_the_jobs_model_is_computed_whatever_the_settings_serve(fleet, replay, monkeypatch):
    stream = fleet.generate("x", max_tokens=5)
    stream.result()
    monkeypatch.setenv("PAGEFLEET_MODEL", "another-model-of-this-host")
    monkeypatch.setenv("PAGEFLEET_SERVED_NAME", "another")
    monkeypatch.setenv("PAGEFLEET_BACKEND", "reference")
    monkeypatch.setenv("PAGEFLEET_DTYPE", "float64")
    done = replay(stream.job_id)
    assert (done.exit_code, done.output) == (0, "choice 0: the same, 5 of 5 tokens\n")


def test_settings_say_where_the_jobs_model_is(replay):
    fields = {
        "request": '{"model": "small"}',
        "queue": "pagefleet.small.interactive",
        "fingerprints": f"[{REAL.model_dump_json()}]",
    }
    record = JobRecord("a", fields)
    here = WorkerSettings(model="/models/a-folder", served_name="small", dtype="bfloat16")
    assert _settings_of(record, here, {}).model == "/models/a-folder"
    assert _settings_of(record, here, {}).dtype == "float64"
    assert _settings_of(record, here, {"model": "/elsewhere", "dtype": "float32"}).model == "/elsewhere"
    assert _settings_of(record, here, {"model": "/elsewhere", "dtype": "float32"}).dtype == "float32"
    assert _settings_of(record, WorkerSettings(model="large"), {}).model == "small"


def test_another_model_than_the_jobs_is_refused_in_one_sentence(
    fleet, replay, null_stack, tmp_path, monkeypatch
):
    """A real model computed the job, and the given model is a different one."""
    monkeypatch.setenv("PAGEFLEET_CACHE_DIR", str(tmp_path / "cache"))
    write_gguf(tmp_path / "tiny.gguf")
    stream = fleet.generate("x", max_tokens=5)
    stream.result()
    store, hash_key = JobStore(FleetSettings(redis_url=null_stack.redis_url)), keys.job(stream.job_id)
    store.redis.hset(hash_key, "fingerprints", f"[{REAL.model_dump_json()}]")
    store.close_connections()
    refused = replay(stream.job_id, "--model", str(tmp_path / "tiny.gguf"))
    assert refused.exit_code == 1
    assert "choice" not in refused.output
    (sentence,) = [line for line in refused.output.splitlines() if line.startswith("Error: ")]
    assert f"tiny.gguf has other weights than the job {stream.job_id}: " in sentence
    assert "the fingerprint of its weights was those-of-the-job, here it is " in sentence


def test_a_job_that_is_not_there_or_still_runs_is_refused(fleet, replay):
    assert "Job nowhere does not exist" in replay("nowhere").output
    stream = fleet.generate("x", max_tokens=4000)
    next(stream)
    refused = replay(stream.job_id)
    stream.cancel()
    assert refused.exit_code == 1
    assert "has not ended yet" in refused.output
