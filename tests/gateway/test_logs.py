"""No line of a log holds what was asked or answered: of gateways and workers, also where jobs fail."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import sys

import httpx
import pytest
import redis
from pythonjsonlogger.json import JsonFormatter

from pagefleet.api.config.log_format import PLAIN, RedactingFormatter, log_loop_fault
from pagefleet.api.contract import keys
from pagefleet.api.contract.errors import RedisUnavailable
from pagefleet.api.contract.messages import ErrorInfo, JobState, WorkerStatus
from pagefleet.api.protocol.connection import redis_errors
from pagefleet.workers.observe.logs import _RedactingJsonFormatter
from pagefleet.workers.threads.polling import wait_until

MARK = "my-secret-9f2c"
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
SAYS = [{"role": "user", "content": MARK}]


@pytest.fixture
def logged_gateway(start_gateway):
    gateway = start_gateway()
    return gateway, lambda: gateway.log_file.read_text()


WRONG = [
    (CHAT, {"messages": [{"role": MARK, "content": "x"}]}),
    (CHAT, {"messages": SAYS, "temperature": MARK}),
    (CHAT, {"messages": SAYS, "stop": [MARK] * 100}),
    (CHAT, {"messages": SAYS, "response_format": {"type": MARK}}),
    (CHAT, {"messages": SAYS, "guided_regex": f"({MARK}"}),
    (CHAT, {"messages": SAYS, "guided_grammar": f"start: {MARK}"}),
    (CHAT, {"messages": SAYS, "structured_outputs": {"json": {"type": MARK}}}),
    (CHAT, {"messages": SAYS, "kept_special_tokens": [MARK], "n": 0}),
    (CHAT, {"messages": SAYS, "model": MARK}),
    (CHAT, {"messages": SAYS, MARK: 1, "max_tokens": 1}),
    (TEXT, {"prompt": MARK * 1000}),
    (TEXT, {"prompt": [MARK, 1]}),
    ("/tokenize", {"prompt": MARK, "messages": SAYS}),
    ("/tokenize", {"prompt": MARK * 100_000}),
]


def end_badly(jobs, job_id, model):
    """As a worker whose tokenizer, template or device threw something that quotes the prompt."""
    jobs.beat(WorkerStatus(worker_id="bad", model=model, host="h", pid=1, started_at=0.0), 5.0)
    (claim,) = jobs.claim([job_id], "bad", "{}")
    failure = ErrorInfo(code="job_failed", message=f"The worker could not prepare this request: {MARK}")
    jobs.end(job_id, "bad", claim.epoch, JobState.FAILED, reason="error", error=failure)
    jobs.delete_lease("bad")
    jobs.forget_worker("bad")


def test_nothing_that_fails_is_quoted(logged_gateway, null_stack, ghost, jobs):
    gateway, log = logged_gateway
    with httpx.Client(base_url=gateway.url, timeout=30) as http:
        for path, body in WRONG:
            http.post(path, json={"model": "null", **body})
        http.post(CHAT, content=f'{{"model": "{MARK}'.encode(), headers={"content-type": "application/json"})
        asked = {"model": ghost, "messages": SAYS, "background": True}
        failed = http.post(CHAT, json=asked).json()["id"]
        end_badly(jobs, failed, ghost)
        assert http.get(f"/v1/jobs/{failed}/stream").status_code == 200
        # What the server holds of these is garbled: a log, and a request.
        whole = http.post(TEXT, json={"model": "null", "prompt": MARK, "max_tokens": 2, "echo": True}).json()
        jobs.redis.lset(
            keys.log(whole["id"]), 0, json.dumps({"offset": 0, "texts": MARK, "token_ids": [MARK]})
        )
        garbled = http.post(TEXT, json={"model": "null", "prompt": MARK, "max_tokens": 2}).json()
        jobs.redis.hset(keys.job(garbled["id"]), "request", json.dumps({"prompt": MARK, "v": MARK}))
        for job_id in (whole["id"], garbled["id"]):
            http.get(f"/v1/jobs/{job_id}")
            http.get(f"/v1/jobs/{job_id}/stream")
    assert wait_until(lambda: f"job {failed} failed: job_failed" in log(), 60), log()
    assert MARK not in log()
    for worker in null_stack.workers:
        assert MARK not in worker.log_file.read_text()


def throw():
    try:
        json.loads(MARK)
    except ValueError:
        raise KeyError(MARK) from ExceptionGroup(MARK, [RuntimeError(MARK), OSError(5, "I/O error")])


@pytest.mark.parametrize(
    "formatter", [RedactingFormatter(PLAIN), _RedactingJsonFormatter("%(message)s", timestamp=True)]
)
def test_a_traceback_says_where_and_of_what_kind(formatter):
    try:
        throw()
    except KeyError:
        record = logging.LogRecord("x", logging.ERROR, "f", 1, "it failed", None, sys.exc_info())
    text = formatter.format(record)
    assert MARK not in text
    for said in ("it failed", "in throw", "KeyError", "RuntimeError", "I/O error"):
        assert said in text
    assert isinstance(formatter, JsonFormatter) == text.startswith("{")


def test_a_task_that_dies_is_logged_without_its_words():
    async def run():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(log_loop_fault)
        task = loop.create_task(asyncio.to_thread(throw))
        await asyncio.wait([task])
        del task

    log, handler = logging.getLogger("pagefleet.api.config.log_format"), logging.StreamHandler(io.StringIO())
    handler.setFormatter(RedactingFormatter(PLAIN))
    log.addHandler(handler)
    try:
        asyncio.run(run())
    finally:
        log.removeHandler(handler)
    text = handler.stream.getvalue()
    assert "never retrieved" in text
    assert MARK not in text


def test_a_command_that_fails_is_not_in_the_error():
    """redis-py puts the command of a pipeline before the server's reply."""
    told = f"Command # 1 (SET pf:question:1 {MARK}) of pipeline caused error: READONLY You can't."
    for kind in (redis.ReadOnlyError, redis.ConnectionError, redis.exceptions.NoPermissionError):
        with pytest.raises(RedisUnavailable) as caught, redis_errors("redis://h"):
            raise kind(told)
        assert MARK not in caught.value.message
        assert "READONLY" in caught.value.message
