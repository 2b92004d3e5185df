"""RecentStats: a worker's figures of its last seconds, sent with each heartbeat."""

from __future__ import annotations

from pagefleet.workers.observe.recent_stats import RecentStats


def test_a_rate_is_over_the_last_five_seconds():
    recent = RecentStats()
    begun_at = recent._started_at
    for second in range(1, 11):
        recent.add_tokens(100, begun_at + second)
    assert recent.summary(begun_at + 10).generation_tok_s == 120
    assert recent.summary(begun_at + 12.5).generation_tok_s == 60
    assert recent.summary(begun_at + 16).generation_tok_s == 0


def test_a_worker_that_has_just_begun_is_not_made_slower_than_it_is():
    recent = RecentStats()
    recent.add_tokens(50, recent._started_at + 0.9)
    assert recent.summary(recent._started_at + 1).generation_tok_s == 50


def test_first_tokens_of_five_minutes():
    recent = RecentStats()
    now = recent._started_at
    assert recent.summary(now)[1:] == (None, None)
    recent.add_first_token(99.0, now)
    for index in range(100):
        recent.add_first_token(index / 100, now + 299)
    assert recent.summary(now + 299)[1:] == (0.5, 0.95)
    assert recent.summary(now + 301)[1:] == (0.5, 0.95)
    assert recent.summary(now + 600)[1:] == (None, None)


def test_it_keeps_a_bounded_number():
    recent = RecentStats()
    for _ in range(10_000):
        recent.add_first_token(1.0, recent._started_at)
        recent.add_tokens(1, recent._started_at)
    assert len(recent._first_tokens) == 256
