"""What can be said of compose.yaml and the Dockerfile without an engine."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from container_engine import ROOT

BIN = Path(sys.executable).parent


def run(program, *arguments):
    done = subprocess.run([BIN / program, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def config():
    """compose.yaml as Compose itself reads it, with no .env."""
    arguments = ["--profile", "*", "--env-file", "/dev/null", "config", "--format", "json"]
    return json.loads(run("docker-compose", *arguments))


def test_the_dockerfile_has_no_lint():
    run("hadolint", "ops/Dockerfile")


def test_the_classic_builder_can_read_it():
    text = (ROOT / "ops" / "Dockerfile").read_text()
    assert not re.search(r"<<|--mount|^# *syntax=", text, re.MULTILINE)


def test_compose_yaml_is_what_the_specification_says():
    run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", "compose.yaml")


def test_every_service_is_locked_up(config):
    for name, service in config["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert {port["host_ip"] for port in service.get("ports", [])} <= {"127.0.0.1"}, name


def test_what_others_wait_for_can_tell_that_it_is_ready(config):
    built_in = {"flower"}  # the image's own
    for name, service in config["services"].items():
        for other, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "healthcheck" in config["services"][other] or other in built_in, (name, other)


def test_docker_is_more_patient_than_a_drain(config):
    worker = config["services"]["worker"]
    patience_s = int(re.fullmatch(r"(\d+)s", worker["stop_grace_period"])[1])
    assert patience_s >= float(worker["environment"]["PAGEFLEET_DRAIN_S"]) + 10


def test_redis_keeps_what_it_is_given(config):
    command = " ".join(config["services"]["redis"]["command"])
    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command
    assert "--aclfile" in command


def test_the_example_names_settings_that_exist(config):
    """Each variable of .env.example is one that compose.yaml or the worker's settings read."""
    from pagefleet.workers.settings import WorkerSettings

    compose = (ROOT / "compose.yaml").read_text()
    for name in re.findall(r"^#?([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE):
        field = name.removeprefix("PAGEFLEET_").lower()
        assert f"${{{name}:-" in compose or field in WorkerSettings.model_fields, name
