"""API keys: who may come in, what each may do, and that replicas count together."""

from __future__ import annotations

import json
import os
import stat

import httpx
import openai
import pytest
from click.testing import CliRunner

from pagefleet.api.cli.main import main
from pagefleet.api.contract import keys
from pagefleet.api.contract.errors import ConfigurationError
from pagefleet.api.gateway.access import api_keys
from pagefleet.api.gateway.access.api_keys import ApiKey
from pagefleet.api.gateway.access.key_file import KeyFile
from pagefleet.api.gateway.access.keyring import Keyring
from pagefleet.api.gateway.access.rate_limit import take
from pagefleet.workers.threads.polling import wait_until

HI = [{"role": "user", "content": "Hi"}]
BODY = {"model": "null", "messages": HI, "max_tokens": 4}
CHAT = "/v1/chat/completions"


@pytest.fixture
def ask(guarded_gateway, key_file):
    """Makes a key with these limits and returns what asks with it, once the gateway has seen the key."""
    clients = []

    def make(**limits):
        token, _ = key_file.add(**{"tenant": "acme", **limits})
        client = httpx.Client(
            base_url=guarded_gateway.url, headers={"authorization": f"Bearer {token}"}, timeout=30
        )
        clients.append(client)
        assert wait_until(lambda: client.get("/v1/models").status_code == 200, 60, 0.1)
        return client

    yield make
    for client in clients:
        client.close()


def code_of(reply):
    return reply.status_code, reply.json()["error"]["code"]


@pytest.mark.parametrize("header", [None, "", "Bearer", "Basic eA==", "Bearer pf-00000000-x", "Bearer x"])
def test_without_a_key_nobody_comes_in(guarded_gateway, header):
    headers = {} if header is None else {"authorization": header}
    with httpx.Client(base_url=guarded_gateway.url, headers=headers) as client:
        for method, path in (("POST", CHAT), ("GET", "/v1/models"), ("GET", "/v1/jobs/x")):
            reply = client.request(method, path)
            assert (reply.status_code, reply.headers["www-authenticate"]) == (401, "Bearer")
            assert reply.json()["error"]["type"] == "invalid_request_error"
        assert client.get("/health").status_code == 200


def test_openai_calls_it_by_its_name(guarded_gateway):
    with (
        openai.OpenAI(base_url=f"{guarded_gateway.url}/v1", api_key="pf-1", max_retries=0) as ai,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        ai.chat.completions.create(model="null", messages=HI)
    assert caught.value.code == "invalid_api_key"


def test_a_tenant_sees_its_own_jobs_only(ask, fleet):
    acme, other = ask(), ask(tenant="other")
    job_id = acme.post(CHAT, json=BODY).json()["id"]
    assert fleet.attach(job_id).result().text
    path = f"/v1/jobs/{job_id}"
    assert acme.get(path).status_code == 200
    for request in (("GET", path), ("GET", f"{path}/stream"), ("DELETE", path)):
        assert code_of(other.request(*request)) == (404, "job_not_found")
    nobodys = fleet.generate("Hello", max_tokens=1)
    nobodys.result()
    assert code_of(acme.get(f"/v1/jobs/{nobodys.job_id}")) == (404, "job_not_found")


def test_models_that_a_key_may_not_use(ask):
    client = ask(models=["another"])
    assert client.get("/v1/models").json()["data"] == []
    for reply in (client.post(CHAT, json=BODY), client.get("/v1/models/null")):
        assert code_of(reply) == (403, "model_not_found")


def test_a_lane(ask, jobs):
    """Its jobs live as long as their client all the same."""
    reply = ask(lane="batch").post(CHAT, json=BODY)
    request = jobs.read(reply.json()["id"]).request()
    assert (request.lane, request.tenant, request.is_detached) == ("batch", "acme", False)


def test_open_jobs_are_counted_by_the_queue(ask, ghost):
    client = ask(tenant="few", max_open=1)
    # One after the other is no matter, however quickly.
    for _ in range(5):
        assert client.post(CHAT, json=BODY).status_code == 200
    waiting = {**BODY, "model": ghost, "background": True}
    assert client.post(CHAT, json=waiting).status_code == 202
    reply = client.post(CHAT, json=waiting)
    assert (code_of(reply), reply.headers["retry-after"]) == ((429, "too_many_open"), "1")
    assert "few" not in reply.text


def test_more_prompts_than_may_ever_be_open(ask, http, ghost):
    """Coming back later would not help: it is no 429."""
    body = {"model": ghost, "background": True}
    few = ask(tenant="fewer", max_open=2).post("/v1/completions", json={**body, "prompt": ["a"] * 3})
    deep = http.post("/v1/completions", json={**body, "prompt": ["a"] * 4})
    for reply in (few, deep):
        assert (code_of(reply), reply.json()["error"]["param"]) == ((400, "invalid_value"), "prompt")
        assert "retry-after" not in reply.headers


def test_choices_are_counted(ask, ghost):
    client = ask(tenant="choosy", max_open=3)
    waiting = {**BODY, "model": ghost, "background": True}
    assert client.post(CHAT, json={**waiting, "n": 2}).status_code == 202
    assert code_of(client.post(CHAT, json={**waiting, "n": 2})) == (429, "too_many_open")
    assert client.post(CHAT, json=waiting).status_code == 202
    reply = client.post(CHAT, json={**waiting, "n": 4})
    assert (code_of(reply), reply.json()["error"]["param"]) == ((400, "invalid_value"), "n")
    body = {"model": ghost, "background": True, "n": 2, "prompt": ["a", "b"]}
    reply = client.post("/v1/completions", json=body)
    assert (code_of(reply), reply.json()["error"]["param"]) == ((400, "invalid_value"), "prompt")


def test_how_long_results_are_kept(ask, jobs):
    client = ask(max_result_ttl_s=100)
    for asked, kept in ((None, 100), (50, 50)):
        job_id = client.post(CHAT, json={**BODY, "result_ttl_s": asked}).json()["id"]
        assert wait_until(lambda job_id=job_id: jobs.redis.ttl(keys.job(job_id)) > 0, 60)
        assert kept - 30 < jobs.redis.ttl(keys.job(job_id)) <= kept
    for asking, asked, limit in ((client, 101, 100), (ask(), 10**9, 7 * 86400)):
        reply = asking.post(CHAT, json={**BODY, "result_ttl_s": asked})
        assert (code_of(reply), reply.json()["error"]["param"]) == ((400, "invalid_value"), "result_ttl_s")
        assert f"ask for {limit} s at most" in reply.json()["error"]["message"]


def test_how_much_is_stored(ask):
    client = ask(tenant="hoarder", max_stored_bytes=4000)
    body = {**BODY, "max_tokens": 20}
    job_id = client.post(CHAT, json=body).json()["id"]
    reply = client.post(CHAT, json={**body, "max_tokens": 30})
    assert code_of(reply) == (429, "too_much_stored")
    assert client.delete(f"/v1/jobs/{job_id}").status_code == 200
    assert wait_until(lambda: client.post(CHAT, json={**body, "max_tokens": 30}).status_code == 200, 60)
    reply = client.post(CHAT, json={**body, "max_tokens": 100})
    assert (code_of(reply), reply.json()["error"]["param"]) == ((400, "invalid_value"), "max_tokens")


def test_requests_a_minute_over_all_replicas(ask, start_gateway, key_file):
    client = ask(tenant="slow", requests_per_minute=3)
    second = start_gateway(keys_file=key_file.path)
    left = []
    for url in ("", second.url, ""):
        reply = client.post(url + CHAT, json=BODY)
        assert (reply.status_code, reply.headers["x-ratelimit-limit-requests"]) == (200, "3")
        left.append(int(reply.headers["x-ratelimit-remaining-requests"]))
    assert left == [2, 1, 0]
    reply = client.post(second.url + CHAT, json=BODY)
    assert (code_of(reply), reply.json()["error"]["type"]) == ((429, "rate_limit_exceeded"), "requests")
    assert 15 <= int(reply.headers["retry-after"]) <= 20


def test_tokens_a_minute_are_settled_at_the_end(ask):
    client = ask(tenant="brief", tokens_per_minute=1000)

    def remaining(**options):
        reply = client.post(CHAT, json={**BODY, **options})
        return int(reply.headers["x-ratelimit-remaining-tokens"])

    # 600 are reserved, and 21 + 600 used.
    assert remaining(max_tokens=600) == 400
    # The next one is let in with what is left; what it does not use comes back.
    assert wait_until(lambda: remaining(max_tokens=1) < 390, 60)
    reply = client.post(CHAT, json={**BODY, "max_tokens": 900})
    assert (code_of(reply), reply.json()["error"]["type"]) == ((429, "rate_limit_exceeded"), "tokens")


def test_a_debt_is_not_forgotten_before_it_is_paid(store):
    key = ApiKey(key_id="00000000", sha256="0" * 64, tenant="deep", tokens_per_minute=10)
    for used, hours in ((5, 1), (1000, (1000 + 5) / 600)):
        store.run(take(key, 0, used, anyway=True))
        left_s = store.redis.pttl(keys.rate(key.key_id)) / 1000
        assert hours * 3600 - 30 < left_s <= hours * 3600 + 1
    assert store.run(take(key, 0, 1))[:2] == [0, "tokens"]


def test_a_key_that_is_revoked_is_worth_nothing(ask, key_file, guarded_gateway):
    client = ask(tenant="gone")
    (key,) = [key for key in key_file.read() if key.tenant == "gone"]
    assert key_file.revoke(key.key_id) is True
    assert wait_until(lambda: client.get("/v1/models").status_code == 401, 60, 0.1)


def test_the_file_holds_no_key_and_is_its_owners(tmp_path):
    file = KeyFile(tmp_path / "sub" / "keys.json")
    token, key = file.add(tenant="acme", models=["a"], max_open=None)
    text = file.path.read_text()
    assert token not in text
    assert token.removeprefix(f"pf-{key.key_id}-") not in text
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert json.loads(text)["keys"] == [key.model_dump(exclude_none=True)]


def test_a_change_leaves_the_file_to_those_who_could_read_it(tmp_path):
    file = KeyFile(tmp_path / "keys.json")
    _, key = file.add(tenant="acme")
    file.path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(file.path, 12345, 12346)
    before = file.path.stat()
    file.revoke(key.key_id)
    after = file.path.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)


def test_a_key_in_a_linked_file_is_revoked_in_the_file_itself(tmp_path):
    target, link = KeyFile(tmp_path / "real.json"), KeyFile(tmp_path / "keys.json")
    _, key = target.add(tenant="acme")
    link.path.symlink_to(target.path)
    assert link.revoke(key.key_id) is True
    assert link.path.is_symlink()
    assert target.read() == []


def test_revoking_in_a_missing_file_creates_nothing(tmp_path):
    with pytest.raises(ConfigurationError, match="No such file"):
        KeyFile(tmp_path / "sub" / "keys.json").revoke("1a2b3c4d")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"gateway_keys_file: .*keys\.json: Not a directory\."):
        KeyFile(tmp_path / "file" / "sub" / "keys.json").add(tenant="acme")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"keys\.json: Invalid JSON"),
        ('{"keys": [{}]}', r"keys\.json: keys\.0\.key_id: Field required\."),
    ],
)
def test_the_error_of_a_file_names_the_place_if_there_is_one(tmp_path, content, message):
    (tmp_path / "keys.json").write_text(content)
    with pytest.raises(ConfigurationError, match=message):
        KeyFile(tmp_path / "keys.json").read()


def test_a_file_that_breaks_changes_nothing(tmp_path, caplog):
    file = KeyFile(tmp_path / "keys.json")
    token, key = file.add(tenant="acme")
    ring = Keyring(file)
    ring.load()
    file.path.write_text("{")
    for _ in range(3):
        ring.try_load()
    assert ring.find(token) == key
    assert ring.find(token + "x") is None
    assert ring.find(f"pf-{key.key_id}-") is None
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert str(file.path) in caplog.text
    with pytest.raises(ConfigurationError, match=r"keys\.json"):
        Keyring(file).load()
    # Once it is whole again, its changes count.
    file.path.write_text('{"keys": []}')
    ring.try_load()
    assert ring.find(token) is None


def test_no_key_has_the_hash_that_stands_for_an_unknown_key():
    assert api_keys._hash("") == api_keys._UNKNOWN_KEY
    with pytest.raises(ValueError, match="key_id"):
        ApiKey(key_id="", sha256=api_keys._UNKNOWN_KEY, tenant="x")


def test_the_commands(tmp_path):
    file = str(tmp_path / "keys.json")

    def run(*arguments):
        done = CliRunner().invoke(main, ["keys", *arguments])
        assert done.exit_code == 0, done.output
        return done.stdout

    limits = ("--max-open", "3", "--max-stored-bytes", "50000", "--max-result-ttl-s", "600")
    token = run("add", "--tenant", "acme", "--model", "a", *limits, "--file", file).strip()
    (key,) = KeyFile(tmp_path / "keys.json").read()
    assert (key.max_open, key.max_stored_bytes, key.max_result_ttl_s) == (3, 50000, 600)
    assert token.startswith("pf-")
    listed = run("list", "--file", file)
    assert "acme" in listed
    assert token not in listed
    run("revoke", token[3:11], "--file", file)
    assert "acme" not in run("list", "--file", file)
    again = CliRunner().invoke(main, ["keys", "revoke", token[3:11], "--file", file])
    assert (again.exit_code, "has no key" in again.output) == (1, True)
    unnamed = CliRunner().invoke(main, ["keys", "add", "--tenant", "", "--file", file])
    assert (unnamed.exit_code, "tenant: String should have" in unnamed.output) == (1, True)
    nowhere = CliRunner().invoke(main, ["keys", "list"])
    assert "gateway_keys_file" in nowhere.output
