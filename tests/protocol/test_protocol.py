"""The scripts' promises, in every order of events: the subset that every test run can afford.

Exhaustive: one job and any one fault but a pause and a rollback (those by ``make protocol-check``), the caps
on deaths, two jobs in one first prefill; a death there is slow. A pause and a rollback, two faults, two
jobs: sampled.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from protocol.broken_scripts import MISTAKES
from protocol.broken_workers import WORKER_MISTAKES
from protocol.explorer import Explorer, World, walk
from protocol.scenarios import CAPS, MIXED, ONE_FAULT, SAMPLED, SCHEDULED, Scenario, begun_pair, unattended
from protocol.script_server import ScriptServer

QUICK = [
    *ONE_FAULT, *CAPS, *SCHEDULED, *MIXED, begun_pair(), begun_pair(solo="1"),
    pytest.param(begun_pair("death"), marks=pytest.mark.slow),
]  # fmt: skip
WALKED = [Scenario(("pause",)), Scenario(("rollback",)), *SAMPLED]


@pytest.mark.parametrize("scenario", QUICK, ids=str)
def test_every_state_is_right_and_leads_to_the_goal(script_server, scenario):
    report = Explorer(World(script_server)).explore(scenario.first_state(script_server))
    assert report.is_complete
    assert report.num_goals
    assert not report.violations, f"{scenario}: {report}"
    assert not report.stuck, f"{scenario}: {report}"


@pytest.mark.parametrize("scenario", WALKED, ids=str)
def test_random_walks_find_nothing_wrong(script_server, scenario):
    world = World(script_server)

    @settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.data())
    def walks(data):
        first = scenario.first_state(script_server)
        assert not list(walk(world, first, _chooser(data), lambda: data.draw(st.integers(0, 9)) == 9))

    walks()


def _chooser(data):
    return lambda moves: moves[data.draw(st.integers(0, len(moves) - 1))]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.what)
def test_a_broken_script_is_noticed(redis_server, mistake):
    scripts = ScriptServer(redis_server.url, mistake.broken)
    try:
        report = Explorer(World(scripts), 100_000, until_wrong=True).explore(
            mistake.scenario.first_state(scripts)
        )
    finally:
        scripts.disconnect()
    assert any(mistake.finds in sentence for sentence in report.violations), str(report)


@pytest.mark.parametrize("mistake", WORKER_MISTAKES, ids=lambda mistake: mistake.worker.__name__)
def test_a_worker_that_marks_wrongly_is_noticed(script_server, mistake):
    explorer = Explorer(World(script_server, mistake.worker), until_wrong=True)
    report = explorer.explore(mistake.scenario.first_state(script_server))
    assert any(mistake.finds in sentence for sentence in report.violations), str(report)


def test_random_walks_notice_it_too(redis_server):
    mistake = next(each for each in MISTAKES if each.what == "STEP has no fence at all")
    scripts, dice = ScriptServer(redis_server.url, mistake.broken), random.Random(7)
    try:
        world, first = World(scripts), mistake.scenario.first_state(scripts)
        walks = (walk(world, first, dice.choice, lambda: dice.random() < 0.1) for _ in range(500))
        assert mistake.finds in next(wrong for each in walks for wrong in each)
    finally:
        scripts.disconnect()


def test_a_worker_that_never_sweeps_is_noticed(script_server):
    """The search backwards from the goals has teeth too: without the sweeper a lost message is lost."""
    world = World(script_server)
    world._actors = [actor for actor in world._actors if type(actor).__name__ != "Sweeper"]
    report = Explorer(world).explore(unattended("drop", "death").first_state(script_server))
    assert report.stuck


def test_a_call_is_asked_of_the_server_only_once(script_server):
    first = Scenario().first_state(script_server)
    Explorer(World(script_server)).explore(first)
    asked = script_server.num_calls
    Explorer(World(script_server)).explore(first)
    assert script_server.num_calls == asked > 50
