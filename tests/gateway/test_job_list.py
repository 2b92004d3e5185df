"""GET /v1/jobs: a tenant's newest jobs, whoever submitted them; and cancelling one of them."""

from __future__ import annotations

import httpx
import pytest

from pagefleet.api.contract import keys
from pagefleet.api.contract.messages import GenerateRequest
from pagefleet.api.gateway.answers.job_ids import answer_of, new_id
from pagefleet.api.protocol.operation_types import Limits
from pagefleet.workers.threads.polling import wait_until

BODY = {"model": "null", "prompt": "Hi", "max_tokens": 4}


@pytest.fixture
def tenant(guarded_gateway, key_file, request):
    """Asks as a tenant of its own."""
    token, _ = key_file.add(tenant=request.node.name)
    headers = {"authorization": f"Bearer {token}"}
    with httpx.Client(base_url=guarded_gateway.url, headers=headers, timeout=30) as client:
        client.tenant = request.node.name
        assert wait_until(lambda: client.get("/v1/models").status_code == 200, 60, 0.1)
        yield client


def ids_of(client, **params):
    return [job["id"] for job in client.get("/v1/jobs", params=params).json()["data"]]


def test_what_is_told_of_a_job(tenant):
    assert tenant.get("/v1/jobs").json() == {
        "object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False,
    }  # fmt: skip
    answer = tenant.post("/v1/completions", json={**BODY, "prompt": ["secret", "words"], "n": 2}).json()
    (job,) = tenant.get("/v1/jobs").json()["data"]
    times = [job.pop(name) for name in ("enqueued_at", "claimed_at", "first_token_at", "ended_at")]
    assert times == sorted(times)
    assert job == {
        "id": answer["id"], "object": "job", "status": "completed", "created": answer["created"],
        "model": "null", "lane": "interactive", "attempts": 1, "usage": answer["usage"], "error": None,
    }  # fmt: skip
    assert answer["usage"]["completion_tokens"] == 16
    shown = tenant.get(f"/v1/jobs/{answer['id']}").json()
    assert shown.items() >= job.items()
    assert shown["result"]["choices"] == answer["choices"]


def test_the_newest_first_and_page_by_page(tenant, fleet):
    asked = [tenant.post("/v1/completions", json=BODY).json()["id"] for _ in range(4)]
    # One that a service of the tenant's submitted itself.
    mine = fleet.generate("x", max_tokens=1, tenant=tenant.tenant)
    mine.result()
    newest = [mine.job_id, *reversed(asked)]
    assert ids_of(tenant) == newest
    assert ids_of(tenant, limit=2) == newest[:2]
    assert ids_of(tenant, limit=2, after=newest[1]) == newest[2:4]
    page = tenant.get("/v1/jobs", params={"limit": 2, "after": newest[3]}).json()
    assert (page["first_id"], page["last_id"], page["has_more"]) == (newest[4], newest[4], False)
    # One that was deleted is not among them, and a page is full all the same.
    tenant.delete(f"/v1/jobs/{newest[1]}")
    page = tenant.get("/v1/jobs", params={"limit": 2}).json()
    assert [job["id"] for job in page["data"]] == [newest[0], newest[2]]
    assert page["has_more"] is True


@pytest.mark.parametrize(
    "params", [{"limit": 0}, {"limit": 101}, {"limit": "x"}, {"limit": "²"}, {"after": "x"}]
)
def test_what_is_wrong(http, params):
    reply = http.get("/v1/jobs", params=params)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, next(iter(params)))


def test_nobody_sees_anothers(tenant, http, fleet, jobs):
    theirs = fleet.generate("x", max_tokens=1, tenant="somebody-else", job_id="used-twice")
    theirs.result()
    theirs.delete()
    again = fleet.generate("x", max_tokens=1, tenant=tenant.tenant, job_id="used-twice")
    again.result()
    nobodys = fleet.generate("x", max_tokens=1)
    nobodys.result()
    assert ids_of(tenant) == ["used-twice"]
    found = ids_of(http)
    assert nobodys.job_id in found
    assert "used-twice" not in found
    # An id that stands in a list of its first tenant is not theirs any more.
    jobs.redis.delete(keys.job("used-twice"), keys.log("used-twice"))  # its time is over
    fleet.generate("x", max_tokens=1, tenant="somebody-else", job_id="used-twice").result()
    assert ids_of(tenant) == []


def test_states_and_cancel(tenant, ghost, fleet):
    waiting = tenant.post("/v1/completions", json={**BODY, "model": ghost, "background": True}).json()["id"]
    running = tenant.post("/v1/completions", json={**BODY, "max_tokens": 4000, "background": True}).json()[
        "id"
    ]

    def states():
        return {job["id"]: job["status"] for job in tenant.get("/v1/jobs").json()["data"]}

    assert wait_until(lambda: states() == {waiting: "queued", running: "in_progress"}, 60)
    for job_id in (waiting, running):
        assert tenant.post(f"/v1/jobs/{job_id}/cancel").json()["id"] == job_id
    assert wait_until(lambda: set(states().values()) == {"cancelled"}, 60)
    # What there was of the answer is kept; a second time is no fault, and nothing of somebody else's.
    assert tenant.get(f"/v1/jobs/{running}").json()["result"]["usage"]["completion_tokens"] > 0
    assert tenant.post(f"/v1/jobs/{running}/cancel").json()["status"] == "cancelled"
    assert tenant.post("/v1/jobs/nothing/cancel").status_code == 404
    other = fleet.generate("x", model="null", max_tokens=4000)
    assert tenant.post(f"/v1/jobs/{other.job_id}/cancel").status_code == 404
    next(other)
    other.cancel()


def test_models_say_whether_they_have_a_worker(http, ghost):
    assert wait_until(lambda: ghost in {each["id"] for each in http.get("/v1/models").json()["data"]}, 60)
    ready = {each["id"]: each["ready"] for each in http.get("/v1/models").json()["data"]}
    assert ready == {"null": True, ghost: False}
    assert http.get(f"/v1/models/{ghost}").json()["ready"] is False


def test_the_list_is_bounded(store):
    request = GenerateRequest(model="m", prompt="x", tenant="t")
    for index in range(510):
        store.submit(f"j{index:03}", request, queue="m.interactive", channel="", limits=Limits(10**6, 10**6))
    name = keys.recent_jobs("t")
    assert store.redis.zcard(name) == 500
    assert store.redis.zrange(name, 0, 0) == ["j010"]
    assert 86_000 < store.redis.ttl(name) <= 86_400


def test_which_answer_a_job_is_part_of():
    several = new_id("cmpl", 3)
    assert answer_of(f"{several}.2") == several
    for alone in (f"{several}.3", new_id("cmpl"), "mine.1", "a.b.2.0", several):
        assert answer_of(alone) == alone
