"""PrefillGate: a suspect starts its prefill alone, and others wait no longer than for that."""

from __future__ import annotations

from pagefleet.engine import EngineRequest, PreparedRequest, SamplingParams
from pagefleet.workers.attempt.prefill_gate import PrefillGate


def request(job_id, log=()):
    return PreparedRequest(EngineRequest(job_id, [1], SamplingParams(), logs=[tuple(log)]), [], 1)


class Gate(PrefillGate):
    def __init__(self, refused=()):
        self.admitted = []
        self.refused = set(refused)
        super().__init__(self._note)

    def _note(self, request):
        if request.request_id in self.refused:
            return False
        self.admitted.append(request.request_id)
        return True


def test_ordinary_requests_begin_together():
    gate = Gate()
    for job_id in "abc":
        gate.add(request(job_id), solo=False)
    assert gate.admitted == ["a", "b", "c"]


def test_a_suspect_waits_for_those_that_begin_and_they_for_it():
    gate = Gate()
    gate.add(request("a"), solo=False)
    gate.add(request("suspect"), solo=True)
    gate.add(request("b"), solo=False)
    assert gate.admitted == ["a"]
    gate.on_started("a")
    assert gate.admitted == ["a", "suspect"]
    gate.on_started("suspect")
    assert gate.admitted == ["a", "suspect", "b"]


def test_suspects_begin_one_after_the_other():
    gate = Gate()
    for job_id in "abc":
        gate.add(request(job_id), solo=True)
    assert gate.admitted == ["a"]
    gate.on_started("a")
    assert gate.admitted == ["a", "b"]
    gate.on_started("b")
    assert gate.admitted == ["a", "b", "c"]


def test_who_has_tokens_passes_and_delays_nobody():
    gate = Gate()
    gate.add(request("suspect"), solo=True)
    gate.add(request("resumed", log=[5]), solo=True)
    assert gate.admitted == ["suspect", "resumed"]
    gate.add(request("next"), solo=False)
    assert gate.admitted == ["suspect", "resumed"]


def test_a_refused_suspect_lets_the_next_in():
    gate = Gate(refused=["suspect"])
    gate.add(request("suspect"), solo=True)
    gate.add(request("a"), solo=False)
    assert gate.admitted == ["a"]


def test_a_waiting_one_can_be_taken_back():
    gate = Gate()
    gate.add(request("a"), solo=False)
    gate.add(request("suspect"), solo=True)
    gate.add(request("b"), solo=False)
    gate.on_started("suspect")
    assert gate.admitted == ["a", "b"]
    gate.on_started("a")
    gate.on_started("b")
    gate.add(request("c"), solo=True)
    assert gate.admitted == ["a", "b", "c"]


def test_later_tokens_of_a_request_change_nothing():
    gate = Gate()
    gate.add(request("a"), solo=False)
    gate.on_started("a")
    gate.add(request("suspect"), solo=True)
    gate.on_started("a")
    gate.add(request("b"), solo=False)
    assert gate.admitted == ["a", "suspect"]


def test_suspects_of_a_failed_step_are_those_that_begin():
    gate = Gate()
    for job_id in "ab":
        gate.add(request(job_id), solo=False)
    gate.add(request("resumed", log=[5]), solo=False)
    gate.on_started("a")
    assert gate.suspects(["resumed", "a", "b"]) == ["b"]


def test_if_none_begins_all_are_suspects_but_for_those_that_were():
    gate = Gate()
    gate.add(request("old suspect"), solo=True)
    gate.on_started("old suspect")
    gate.add(request("a"), solo=False)
    gate.on_started("a")
    assert gate.suspects(["a", "old suspect"]) == ["a"]
    gate.on_ended("old suspect")
    assert gate.suspects(["a", "old suspect"]) == ["a", "old suspect"]
