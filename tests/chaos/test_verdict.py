"""What the suite compares with must be able to fail: each kind of fault is seen for what it is."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ops.chaos.books import keys_left
from ops.chaos.overload import REFUSED_GOAL_S, Asked, judge
from ops.chaos.proxy import Proxy
from ops.chaos.report import percentile
from ops.chaos.rounds import RoundResult, Suite
from ops.chaos.shapes import SHAPES
from ops.chaos.soak import Sample, trends
from ops.chaos.streams import StreamLog, Verdict
from ops.chaos.workload import Outcome, null_tokens_are_right, workload_of
from pagefleet.api import FleetSettings
from pagefleet.api.contract.errors import RedisUnavailable
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.engine.execution.null_executor import null_token

CALM = Outcome([1, 2, 3, 4], "abcd", "length")


def log_of(*chunks, finish_reason="length", ended=True):
    log = StreamLog("a", {})
    for offset, token_ids, text in chunks:
        feed(log, 0, offset, token_ids, text)
    if ended:
        log.feed({"kind": "end", "t": 2.0, "finish_reasons": [finish_reason]})
    return log


def feed(log, choice, offset, token_ids, text):
    told = {"choice": choice, "offset": offset, "token_ids": token_ids, "text": text}
    log.feed({"kind": "chunk", "t": 1.0, **told})


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (log_of((0, [1, 2], "ab"), (2, [3, 4], "cd")), (0, 0, 0)),
        (log_of((0, [1, 2], "ab"), (3, [4], "d")), (1, 0, 1)),
        (log_of((0, [1, 2], "ab"), (1, [2, 3, 4], "cd")), (0, 1, 0)),
        (log_of((0, [1, 2], "ab"), (2, [3, 9], "cd")), (0, 0, 1)),
        (log_of((0, [1, 2, 3, 4, 5], "abcd")), (0, 0, 1)),
        (log_of((0, [1, 2, 3, 4], "abxd")), (0, 0, 1)),
        (log_of((0, [1, 2, 3, 4], "abcd"), finish_reason="stop"), (0, 0, 1)),
        (log_of((0, [1, 2, 3, 4], "abcd"), ended=False), (1, 0, 0)),
        (log_of((0, [1], "a"), (0, [7], "a"), (1, [2, 3, 4], "bcd")), (0, 1, 1)),
    ],
    ids=[
        "clean",
        "lost",
        "doubled",
        "changed",
        "more",
        "text",
        "reason",
        "no end",
        "told twice, differently",
    ],
)
def test_verdicts(log, expected):
    verdict = log.judge(CALM)
    assert verdict[:3] == expected
    assert verdict.is_clean == (expected == (0, 0, 0))


def test_each_choice_is_judged_by_itself():
    calm = CALM._replace(others=(Outcome([5, 6], "xy", "stop"),))
    log = StreamLog("a", {"n": 2})
    feed(log, 1, 0, [5], "x")
    feed(log, 0, 0, [1, 2, 3, 4], "abcd")
    assert log.num_tokens == [4, 1]
    assert log.judge(calm)[:3] == (1, 0, 0)
    feed(log, 1, 1, [6], "y")
    log.feed({"kind": "end", "t": 2.0, "finish_reasons": ["length", "stop"]})
    assert log.judge(calm).is_clean
    assert log.outcome() == calm
    assert log.judge(CALM)[:3] == (0, 0, 2)
    feed(log, 1, 1, [6], "")
    assert log.judge(calm)[:3] == (0, 1, 0)


def test_an_error_in_place_of_an_end_is_a_loss():
    log = log_of((0, [1, 2, 3, 4], "abcd"), ended=False)
    log.feed({"kind": "error", "t": 2.0, "error": "JobLost"})
    assert log.judge(CALM) == Verdict(1, 0, 0, ("a: JobLost", "a: 4 of 4 tokens"))


def test_the_longest_silence():
    log = StreamLog("a", {}, moments=[0.0])
    for moment in (1.0, 1.5, 4.0, 4.1):
        log.feed({"kind": "begun", "t": moment})
    assert log.longest_silence_s == 2.5


def test_a_calm_run_that_is_wrong_itself_is_found():
    request = {"seed": 5, "max_tokens": 3}
    right = [null_token(5, 0, position) for position in range(3)]
    assert null_tokens_are_right([request], [Outcome(right, "", "length")])
    assert not null_tokens_are_right([request], [Outcome(right[:2], "", "length")])
    assert not null_tokens_are_right([request], [Outcome([right[1], right[0], right[2]], "", "length")])


def test_requests_are_the_same_in_every_process():
    workload = workload_of("null", None)
    assert workload.requests(3) == workload.requests(3)
    assert workload.requests(3) != workload.requests(4)
    requests = workload.requests(0)
    assert len(requests) == 64
    assert all(32 <= len(request["prompt_token_ids"]) <= 256 for request in requests)
    assert {request["lane"] for request in requests} == {"interactive", "batch"}
    assert 0 < sum("stop" in request for request in requests) < 64


@pytest.mark.parametrize(("engine", "num_kinds"), [("null", len(SHAPES)), ("model", 6)])
def test_structured_jobs_of_every_kind_are_among_them(engine, num_kinds):
    requests = workload_of(engine, None).requests(0)
    wanted = [request["structured_outputs"] for request in requests if "structured_outputs" in request]
    assert len({str(each) for each in wanted}) == num_kinds
    assert {bool(each.get("wind_down")) for each in wanted} == {True, False}
    assert {"json_schema", "json_object", "regex", "choice", "grammar"} <= {
        name for each in wanted for name in each
    }


@pytest.mark.parametrize(
    ("shape", "text"),
    list(zip(SHAPES, ['[1,2,"red"]', "ab-x1-y2-z3.", '{"code":"AB-1","note":"","sizes":[]}', "<ab<>>c.", "{}",
                      "one grüne sky", "a(b)."], strict=True)),
    ids=lambda each: "",
)  # fmt: skip
def test_a_structured_text_that_ended_is_whole(shape, text):
    request = {"seed": 1, "max_tokens": 400, "structured_outputs": shape.wanted}
    assert null_tokens_are_right([request], [Outcome([1], text, "stop")])
    assert not null_tokens_are_right([request], [Outcome([1], text[:-1], "stop")])
    assert not null_tokens_are_right([request], [Outcome([1], text, None)])
    # Cut off after all that it may have, and not before.
    assert null_tokens_are_right([request], [Outcome([1] * 400, text[:-1], "length")])
    assert not null_tokens_are_right([request], [Outcome([1], text, "length")])


def asked(status=200, retry_after=None, code=None, finish_reason="length", delay_s=0.0, gap_s=0.02):
    tokens_s = [0.05 + delay_s + gap_s * index for index in range(5)] if status == 200 else []
    return Asked(status, 0.01, retry_after, code, tokens_s, finish_reason if tokens_s else None)


def refused(**more):
    return asked(429, **{"retry_after": "1", "code": "queue_full", **more})


@pytest.mark.parametrize(
    ("single", "double", "complaint"),
    [
        ([asked()], [asked(), refused()], None),
        ([asked()], [asked(), asked()], "0 were refused"),
        ([asked()], [refused(), refused()], "2 were refused"),
        ([asked()], [asked(), refused(retry_after=None)], "(429"),
        ([asked()], [asked(), refused(code="overloaded")], "(429"),
        ([asked(503, "1", "service_unavailable")], [asked(), refused()], "(503"),
        ([asked(finish_reason=None)], [asked(), refused()], "(200"),
        ([asked()], [asked(delay_s=0.2), refused()], "a first token took"),
        ([asked()], [asked(gap_s=0.2), refused()], "a token took"),
    ],
)
def test_what_overload_may_do(single, double, complaint):
    found = judge({1: single, 2: double}).complaints
    assert bool(found) == (complaint is not None)
    assert complaint is None or complaint in found[0]


def test_the_slowest_refusal_is_seen():
    slow = refused()
    slow.head_s = 3.5 * REFUSED_GOAL_S
    assert judge({1: [asked()], 2: [asked(), slow]}).complaints == ["a 429 took 0.35 s"]


def test_over_http_the_gateway_names_a_job_and_a_break_is_timed():
    log = StreamLog("mine", {})
    log.feed({"kind": "begun", "t": 1.0, "answer_id": "cmpl-1"})
    log.feed({"kind": "cut", "t": 2.0})
    feed(log, 0, 0, [5], "x")
    assert (log.job_id, log.cuts_s) == ("cmpl-1", [-1.0])


def test_a_connection_that_broke_off_is_a_gateways_death_or_a_complaint():
    log = log_of((0, [1, 2, 3, 4], "abcd"))
    log.cuts_s.append(0.2)
    for num_gateways_killed, num_complaints in ((1, 0), (0, 1)):
        result = RoundResult(0, "kill", "http")
        scene = SimpleNamespace(num_gateways_killed=num_gateways_killed)
        Suite._judge_connections(result, [log], scene)
        assert len(result.complaints) == num_complaints
        assert result.reconnects_s == [0.2]


class _Fleet:
    def __init__(self, store):
        self.store = store


def test_a_key_that_stays_is_found(store):
    store.redis.set("pf:model:null", "{}")
    store.redis.set("pf:lease:w", "1", ex=100)
    store.redis.zadd("pf:workers", {"w": 1.0})
    assert keys_left(_Fleet(store)) == []
    store.redis.hset("pf:unacked:w", "tag", "message")
    store.redis.lpush("pagefleet.null.interactive\x06\x164", "message")
    assert len(keys_left(_Fleet(store))) == 2


@pytest.mark.parametrize(("to_server", "to_client"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("reset", [True, False])
def test_a_cut_lets_nothing_through_until_it_is_healed(redis_server, to_server, to_client, reset):
    proxy = Proxy(redis_server.port).start()
    through = JobStore(FleetSettings(redis_url=proxy.url, socket_timeout_s=0.3, connect_timeout_s=0.3))
    try:
        assert through.cards() == []
        assert proxy.num_connections == 1
        proxy.cut(to_server=to_server, to_client=to_client)
        with pytest.raises(RedisUnavailable):
            through.cards()
        proxy.heal(reset=reset)
        assert through.cards() == []
    finally:
        through.close_connections()
        proxy.stop()


def test_a_growth_is_found():
    def sample(minute, megabytes, keys=30, threads=20):
        return Sample(60.0 * minute, {"worker 0": megabytes}, 20, threads, keys, 100)

    flat = trends([sample(minute, 100.0) for minute in range(20)], 60.0, 2)
    assert all(trend.is_flat for trend in flat)
    grown = trends([sample(minute, 100.0 + minute) for minute in range(20)], 60.0, 2)
    assert [trend.name for trend in grown if not trend.is_flat] == ["rss worker 0"]
    leaking = trends(
        [sample(minute, 100.0, keys=30 + 3 * minute, threads=20 + minute) for minute in range(20)], 60.0, 2
    )
    assert [trend.name for trend in leaking if not trend.is_flat] == ["keys", "threads"]


def test_percentiles():
    assert percentile([], 0.5) is None
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([float(n) for n in range(100)], 0.99) == 99.0
