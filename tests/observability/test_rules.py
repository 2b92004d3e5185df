"""The recording and alert rules, by promtool's own tests; and that they ask for metrics that exist."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from documented import METRICS_DOC, documented_metrics

FOLDER = Path(__file__).parents[2] / "ops" / "prometheus"
RULES = ["recording.rules.yml", "alerts.rules.yml"]


def run(promtool, *arguments):
    done = subprocess.run([promtool, *map(str, arguments)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def rules_of(name):
    groups = yaml.safe_load((FOLDER / name).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_their_own_tests(promtool):
    run(promtool, "test", "rules", FOLDER / "rules.test.yml")


def test_the_configuration_is_valid(promtool):
    run(promtool, "check", "config", FOLDER / "prometheus.yml")
    run(promtool, "check", "rules", *(FOLDER / name for name in RULES))


def test_every_alert_and_its_silence_is_tested():
    tests = yaml.safe_load((FOLDER / "rules.test.yml").read_text())["tests"]
    cases = [case for test in tests for case in test.get("alert_rule_test", [])]
    alerts = {rule["alert"] for rule in rules_of("alerts.rules.yml")}
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == alerts
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == alerts


@pytest.mark.parametrize("name", RULES)
def test_they_ask_for_metrics_that_exist(name):
    """A rule on a metric that was renamed never fires, and no test of its own would notice."""
    known = documented_metrics(METRICS_DOC.read_text())
    for rule in rules_of(name):
        asked = {
            re.sub(r"_(bucket|sum|count)$", "", word)
            for word in re.findall(r"(?<![:\w])pagefleet_\w+", rule["expr"])
        }
        assert asked <= set(known), rule
        assert asked or "up{" in rule["expr"]
