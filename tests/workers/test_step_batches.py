"""Which unsent tokens go into which STEP."""

from __future__ import annotations

import json
from types import SimpleNamespace

from pagefleet.workers.attempt.step_batches import step_batches
from pagefleet.workers.job.active_choice import ActiveChoice
from pagefleet.workers.job.active_job import ActiveJob


def job(name, *texts, num_choices=1):
    choices = [ActiveChoice(index) for index in range(num_choices)]
    choices[-1].token_ids, choices[-1].texts = list(range(len(texts))), list(texts)
    return ActiveJob(name, 1, SimpleNamespace(), choices=choices, accepted_sent=True)


def sizes(jobs):
    return [len(unsent.batch) for unsent in step_batches(jobs)]


def test_a_call_has_at_most_256_items():
    assert sizes([job(str(number), "x") for number in range(600)]) == [256, 256, 88]


def test_the_choices_of_a_job_may_be_in_two_calls():
    many = job("a", num_choices=100)
    for choice in many.choices:
        choice.token_ids, choice.texts = [1], ["x"]
    assert sizes([job(str(number), "x") for number in range(200)] + [many]) == [256, 44]


def test_a_call_ends_after_128_kib_of_entries():
    assert sizes([job(str(number), "x" * 50_000) for number in range(7)]) == [3, 3, 1]


def test_a_job_without_tokens_has_one_item_for_its_flags():
    (unsent,) = step_batches([job("a", num_choices=3)])
    assert (unsent.batch.choices, unsent.batch.counts) == ([0], [0])
    assert unsent.batch.reasons == unsent.batch.accepted == []


def test_only_choices_with_something_unsent_are_sent():
    one = job("a", "x", "y", num_choices=3)
    one.choices[0].finish_reason, one.choices[0].has_ended = "stop", True
    one.choices[2].num_sent, one.choices[2].finish_reason = 1, "length"
    one.accepted_sent, one.num_prompt_tokens, one.num_cached_tokens = False, 7, 4
    (unsent,) = step_batches([one])
    batch = unsent.batch
    assert (batch.choices, batch.bases, batch.counts) == ([2], [1], [1])
    assert batch.keys == ["pf:job:a", "pf:log:a"]
    assert json.loads(batch.entries[0]) == {
        "choice": 2, "offset": 1, "token_ids": [1], "texts": ["y"], "finish_reason": "length",
    }  # fmt: skip
    assert (batch.reasons, batch.accepted) == ([(1, "length")], [(1, 7, 4)])


def test_a_job_is_accepted_with_its_first_item_only():
    both = job("a", "x", num_choices=2)
    both.choices[0].token_ids, both.choices[0].texts = [5], ["z"]
    both.accepted_sent, both.num_prompt_tokens = False, 3
    (unsent,) = step_batches([job("b", "x"), both])
    assert unsent.batch.choices == [0, 0, 1]
    assert unsent.batch.accepted == [(2, 3, 0)]
