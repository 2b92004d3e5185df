"""What a client can repeat is limited first, and nothing of it holds up the others."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagefleet.api import AsyncFleetClient
from pagefleet.api.contract import keys
from pagefleet.api.contract.errors import QueueFull, UnknownModel
from pagefleet.api.gateway.access.tenant_slots import AT_ONCE, MAX_WAITING, TenantSlots
from pagefleet.api.gateway.http.sliced_json import sliced_json
from pagefleet.workers.threads.polling import wait_until

HI = [{"role": "user", "content": "Hi"}]
BODY = {"model": "null", "messages": HI, "max_tokens": 1}
CHAT = "/v1/chat/completions"


def client_of(gateway, key_file, **limits):
    token, _ = key_file.add(tenant="acme", **limits)
    client = httpx.Client(base_url=gateway.url, headers={"authorization": f"Bearer {token}"}, timeout=30)
    assert wait_until(lambda: client.get("/nowhere").status_code == 404, 60, 0.1)
    return client


@pytest.mark.parametrize(
    ("path", "body"), [(CHAT, BODY), ("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [1]})]
)
def test_unknown_models_count_as_requests(guarded_gateway, key_file, path, body):
    with contextlib.closing(client_of(guarded_gateway, key_file, requests_per_minute=2)) as client:
        assert wait_until(lambda: client.get("/v1/models").status_code == 200, 60, 0.1)
        replies = [client.post(path, json={**body, "model": f"nobody-{n}"}).status_code for n in range(4)]
    assert replies == [404, 404, 429, 429]


def test_a_burst_of_unknown_names_reads_the_cards_once(null_stack, jobs):
    async def ask():
        async with AsyncFleetClient(redis_url=null_stack.redis_url) as fleet:
            await fleet.card("null")
            before = num_reads()
            found = await asyncio.gather(*(fleet.card(f"x{n}") for n in range(200)), return_exceptions=True)
            assert all(isinstance(each, UnknownModel) for each in found)
            return num_reads() - before

    def num_reads():
        return jobs.redis.info("commandstats").get("cmdstat_smembers", {}).get("calls", 0)

    # Somebody else may look at the same moment.
    assert asyncio.run(ask()) <= 4


def test_reading_is_limited_by_the_key(start_gateway, key_file):
    gateway = start_gateway(keys_file=key_file.path, reads_per_s=1)
    clients = [contextlib.closing(client_of(gateway, key_file)) for _ in range(2)]
    with clients[0] as one, clients[1] as other:
        assert wait_until(lambda: other.get("/v1/models").status_code == 200, 60, 0.1)
        paths = ["/v1/models", "/v1/jobs", "/v1/jobs/none", "/v1/jobs/none/stream", "/v1/models/null"]
        statuses = [one.get(path).status_code for path in paths]
        assert statuses[:4] == [200, 200, 404, 404]
        assert statuses[4] == 429
        refused = one.post("/v1/jobs/none/cancel")
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        # Generating has a limit of its own, and another key too.
        assert one.post(CHAT, json=BODY).status_code == 200
        assert other.get("/v1/models").status_code == 200


def test_one_tenants_questions_leave_room_for_anothers():
    async def run():
        slots, entered, leave = TenantSlots(), [], asyncio.Event()

        async def ask(tenant):
            async with slots.acquire(tenant):
                entered.append(tenant)
                await leave.wait()

        many = [asyncio.create_task(ask("many")) for _ in range(MAX_WAITING)]
        await asyncio.sleep(0)
        assert entered == ["many"] * AT_ONCE
        with pytest.raises(QueueFull):
            await ask("many")
        one = asyncio.create_task(ask("one"))
        await asyncio.sleep(0)
        assert entered[-1] == "one"
        leave.set()
        await asyncio.gather(one, *many)
        assert len(entered) == MAX_WAITING + 1
        assert not slots._slots

    asyncio.run(run())


LARGE = 12_000


@pytest.fixture
def large_job(http, jobs):
    """An answer of many tokens with all their logprobs, as its log would hold it."""
    asked = {"model": "null", "prompt": "Hi", "max_tokens": 1, "logprobs": 1}
    job_id = http.post("/v1/completions", json=asked).json()["id"]
    top = [{"token_id": n, "logprob": -1.5, "text": "x"} for n in range(20)]
    each = {"token_id": 1, "logprob": -1.5, "text": "x", "rank": 1, "top": top}
    pipeline = jobs.redis.pipeline()
    pipeline.delete(keys.log(job_id))
    for offset in range(0, LARGE, 100):
        entry = {"offset": offset, "token_ids": [1] * 100, "texts": ["x"] * 100, "logprobs": [each] * 100}
        pipeline.rpush(keys.log(job_id), json.dumps(entry))
    pipeline.hset(keys.job(job_id), "n:0", LARGE)
    pipeline.execute()
    yield job_id
    jobs.redis.delete(keys.job(job_id), keys.log(job_id))


def test_a_large_answer_keeps_nobody_waiting(gateway, http, large_job):
    """The event loop answers others while the log is read and spelled."""
    waits, done = [], threading.Event()

    def look():
        with httpx.Client(base_url=gateway.url, timeout=30) as client:
            while not done.is_set():
                begun_at = time.monotonic()
                client.get("/health")
                waits.append(time.monotonic() - begun_at)
                time.sleep(0.01)

    looking = threading.Thread(target=look)
    looking.start()
    begun_at = time.monotonic()
    reply = http.get(f"/v1/jobs/{large_job}")
    took_s = time.monotonic() - begun_at
    done.set()
    looking.join()
    (choice,) = reply.json()["result"]["choices"]
    assert len(choice["logprobs"]["tokens"]) == LARGE
    assert max(waits) < took_s / 2, (max(waits), took_s)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=150) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=300,
)


@given(values)
def test_parts_of_json_are_the_whole(value):
    assert "".join(sliced_json(value)) == json.dumps(value, ensure_ascii=False, separators=(",", ":"))
