"""A few rounds of the chaos suite: real processes, real faults, every stream equal to the calm run's.

``make chaos`` and ``make chaos-model`` run many. A bar here is three times its goal.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pagefleet.api.protocol.operation_types import CLIENT_LEASE_S

pytestmark = [pytest.mark.alone, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
SILENCE_S, CLAIM_S, DRAIN_S, SWEPT_S = 3 * 4.0, 3 * 4.0, 3 * 0.5, 3 * 20.0


def run_chaos(tmp_path, *arguments, timeout):
    """The report of a run that must be clean."""
    path = tmp_path / "report.json"
    command = [sys.executable, "-m", "ops.chaos", "--home", str(tmp_path / "stack"), "--json", str(path)]
    done = subprocess.run(
        [*command, *arguments], cwd=ROOT, timeout=timeout, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(path.read_text())
    assert done.stdout.splitlines()[-1] == report["summary"]
    assert " lost=0 doubled=0 changed=0 " in report["summary"]
    assert all(not one["complaints"] for one in report["rounds"])
    return report


def faults(*names):
    return [part for name in names for part in ("--fault", name)]


def test_five_faults_without_a_model(server_binary, tmp_path):
    names = ["kill", "drain", "valkey", "client", "cut"]
    report = run_chaos(tmp_path, "--rounds", "5", "--seed", "7", *faults(*names), timeout=170)
    assert sorted(report["by_fault"]) == sorted(names)
    killed, drained = report["by_fault"]["kill"], report["by_fault"]["drain"]
    # A round whose fault met nobody proves nothing.
    assert killed["claim_s"]["num"] > 0
    assert drained["drain_s"]["num"] > 0
    # A message that died between BRPOP and the ledger waits for the sweeper: in one round it may be the p99.
    assert killed["struck_silence_s"]["p50"] <= SILENCE_S
    assert killed["struck_silence_s"]["max"] <= SWEPT_S
    assert killed["claim_s"]["p99"] <= CLAIM_S
    assert drained["drain_s"]["max"] <= DRAIN_S


def test_what_clients_see_through_gateways(server_binary, tmp_path):
    """Two replicas, one of them killed; then what is killed behind them; then twice the load that fits."""
    names = ["gateway", "kill", "valkey"]
    arguments = ["--through", "gateway", "--rounds", "3", "--streams", "12", "--seed", "7"]
    report = run_chaos(tmp_path, *arguments, "--overload-seconds", "1.5", *faults(*names), timeout=170)
    # A killed gateway that nobody read from, and a load that fits, prove nothing.
    assert report["by_fault"]["gateway"]["reconnect_s"]["num"] > 0
    assert report["by_fault"]["kill"]["claim_s"]["num"] > 0
    assert report["overload"]["num_refused"] > 0
    assert report["overload"]["complaints"] == []


def test_a_client_that_nobody_replaces_takes_its_jobs_with_it(server_binary, tmp_path):
    report = run_chaos(tmp_path, "--rounds", "1", "--streams", "8", *faults("client-gone"), timeout=170)
    orphans = report["by_fault"]["client-gone"]["orphan_s"]
    assert orphans["num"] == 4
    # Not before its heartbeat has run out, which it renewed before it died.
    assert orphans["max"] > CLIENT_LEASE_S / 2
    assert max(report["rounds"][0]["orphans_s"]) == orphans["max"]


@pytest.mark.parametrize("name", ["kill"])
def test_a_fault_with_the_model(server_binary, tmp_path, name):
    arguments = ["--engine", "model", "--rounds", "1", "--streams", "4", "--seed", "7", *faults(name)]
    report = run_chaos(tmp_path, *arguments, timeout=170)
    assert report["by_fault"][name]["claim_s"]["num"] > 0
    assert report["by_fault"][name]["claim_s"]["p99"] <= CLAIM_S
