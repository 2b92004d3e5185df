"""/tokenize and /detokenize: a worker answers, without a job, also one that has no room for another."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
import time

import httpx
import pytest

from pagefleet.api import AsyncFleetClient, FleetClient
from pagefleet.api.client.questions import MAX_BYTES, MAX_WAITING
from pagefleet.api.config.settings import FleetSettings
from pagefleet.api.contract import keys
from pagefleet.api.contract.errors import NoAnswer, QueueFull
from pagefleet.engine.text.tokenizer import ByteTokenizer
from pagefleet.workers.threads.polling import wait_until

HI = [{"role": "user", "content": "Hi"}]
IN_PARTS = [{"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}]
BOS = ByteTokenizer.BOS_TOKEN_ID


def ids(text):
    return list(text.encode())


@pytest.mark.parametrize(
    ("asked", "tokens"),
    [
        ({"prompt": "Hé"}, [BOS, *ids("Hé")]),
        ({"prompt": "Hi", "add_special_tokens": False}, ids("Hi")),
        ({"prompt": "", "add_special_tokens": False}, []),
        ({"messages": HI}, [BOS, *ids("user: Hi\nassistant: ")]),
        ({"messages": HI, "add_generation_prompt": False}, [BOS, *ids("user: Hi\n")]),
        ({"messages": IN_PARTS}, [BOS, *ids("user: Hi\nassistant: ")]),
    ],
)  # fmt: skip
def test_tokens_as_the_model_reads_them(http, asked, tokens):
    assert http.post("/tokenize", json={"model": "null", **asked}).json() == {
        "count": len(tokens), "max_model_len": 4096, "tokens": tokens, "token_strs": None,
    }  # fmt: skip


def test_they_are_those_that_a_job_counts(http, ghost):
    counted = http.post("/tokenize", json={"model": "null", "messages": HI}).json()["count"]
    body = {"model": "null", "messages": HI, "max_tokens": 1}
    assert http.post("/v1/chat/completions", json=body).json()["usage"]["prompt_tokens"] == counted


def test_how_the_vocabulary_spells_them_and_back(http):
    found = http.post("/tokenize", json={"model": "null", "prompt": "a é", "return_token_strs": True}).json()
    assert found["token_strs"] == ["<|bos|>", "a", "<0x20>", "<0xC3>", "<0xA9>"]
    assert http.post("/detokenize", json={"model": "null", "tokens": found["tokens"]}).json() == {
        "prompt": "<|bos|>a é"
    }


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {"prompt": "a", "messages": HI}, 400, "prompt"),
        ("/tokenize", {}, 400, "prompt"),
        ("/tokenize", {"messages": []}, 400, "messages"),
        ("/tokenize", {"prompt": 1}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "model": "nope"}, 404, "model"),
        ("/tokenize", {"prompt": "a", "chat_template": "x"}, 400, "chat_template"),
        ("/tokenize", {"prompt": "a" * MAX_BYTES}, 400, "prompt"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens"),
        ("/detokenize", {"tokens": [259]}, 400, "tokens"),
        ("/detokenize", {"tokens": "a"}, 400, "tokens"),
        ("/detokenize", {}, 400, "tokens"),
    ],
)
def test_what_is_wrong(http, path, body, status, param):
    reply = http.post(path, json={"model": "null", **body})
    assert (reply.status_code, reply.json()["error"]["param"]) == (status, param)


def test_without_a_worker_it_is_told_at_once(http, ghost, jobs):
    reply = http.post("/tokenize", json={"model": ghost, "prompt": "a"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "no_worker")
    assert reply.headers["retry-after"] == "1"
    assert reply.elapsed.total_seconds() < 5
    # Nothing was asked that nobody would answer.
    assert not jobs.redis.exists(keys.questions(ghost))


def test_so_many_may_wait_and_no_more(http, fleet, ghost, jobs):
    jobs.redis.lpush(keys.questions(ghost), *map(str, range(MAX_WAITING)))
    reply = http.post("/tokenize", json={"model": ghost, "prompt": "a"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (429, "queue_full")
    with pytest.raises(QueueFull):
        fleet.tokenize("a", model=ghost)
    jobs.redis.delete(keys.questions(ghost))


def test_a_worker_without_room_answers_all_the_same(http, fleet):
    """Sixty-four jobs run, as many as it takes, and more wait."""
    crowd = [fleet.generate("x", max_tokens=4000, seed=seed) for seed in range(70)]
    assert wait_until(lambda: fleet.status().workers[0].num_running == 64, 60)
    assert http.post("/tokenize", json={"model": "null", "prompt": "Hi"}).json()["count"] == 3
    assert fleet.status().workers[0].num_running == 64
    for stream in crowd:
        stream.cancel()
    for stream in crowd:
        stream.result()


def test_a_question_that_nobody_can_read(fleet, jobs):
    """Another version's, or broken: the asker is told, and the next question is answered. A key that
    is no list ends no worker."""
    jobs.redis.set(keys.questions("null"), "x", px=1200)
    assert wait_until(lambda: not jobs.redis.exists(keys.questions("null")), 60)
    for text in ("{", json.dumps({"prompt": 7}), "[]"):
        jobs.redis.set(keys.question("q"), text, px=10_000)
        jobs.redis.lpush(keys.questions("null"), "q")
        _name, answer = jobs.redis.blpop(keys.answer("q"), timeout=60)
        assert json.loads(answer)["error"]["code"] == "invalid_request"
    assert fleet.tokenize("Hi").count == 3


def test_a_frozen_worker_holds_nobody_up_for_long(start_fleet):
    """Redis may give it a question all the same: it is asked again, and another worker answers. Without one
    the asker is told as soon as the lease has run out."""
    stack = start_fleet(2)
    with FleetClient(redis_url=stack.redis_url) as fleet:
        assert fleet.tokenize("Hi").count == 3
        frozen = []
        try:
            for worker in stack.workers:
                worker.send_signal(signal.SIGSTOP)
                frozen.append(worker)
                if len(frozen) == 1:
                    assert [fleet.tokenize("Hi").count for _ in range(4)] == [3] * 4
            begun_at = time.monotonic()
            with pytest.raises(NoAnswer, match="has no worker now"):
                fleet.tokenize("Hi")
            assert time.monotonic() - begun_at < 9
        finally:
            for worker in frozen:
                worker.send_signal(signal.SIGCONT)


def test_both_clients_and_many_at_once(null_stack, fleet):
    async def ask_many():
        async with AsyncFleetClient(FleetSettings(redis_url=null_stack.redis_url)) as client:
            found = await asyncio.gather(*(client.tokenize("a" * size) for size in range(40)))
            assert [each.count for each in found] == [size + 1 for size in range(40)]
            assert await client.detokenize(ids("Hé")) == "Hé"
            with pytest.raises(ValueError, match="either prompt or messages"):
                await client.tokenize()

    asyncio.run(ask_many())
    assert fleet.tokenize(messages=HI).token_ids == [BOS, *ids("user: Hi\nassistant: ")]
    assert fleet.detokenize(ids("Hé")) == "Hé"
    found = []
    threads = [threading.Thread(target=lambda: found.append(fleet.tokenize("a").count)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [2] * 8


def test_a_tenant_without_the_model(guarded_gateway, key_file):
    token, _ = key_file.add(tenant="acme", models=["other"])
    limited, _ = key_file.add(tenant="acme", requests_per_minute=1)
    with httpx.Client(base_url=guarded_gateway.url) as client:

        def ask(key):
            headers = {"authorization": f"Bearer {key}"}
            return client.post("/tokenize", json={"model": "null", "prompt": "a"}, headers=headers)

        assert wait_until(lambda: ask(token).status_code == 403, 60, 0.1)
        assert wait_until(lambda: ask(limited).status_code == 200, 60, 0.1)
        assert ask(limited).status_code == 429
        assert ask("x").status_code == 401
