"""What can be said of compose.yaml and the Dockerfile without an engine."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
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
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert {port["host_ip"] for port in service.get("ports", [])} <= {"127.0.0.1"}, name


def test_what_others_wait_for_can_tell_that_it_is_ready(config):
    for name, service in config["services"].items():
        for other, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "test" in config["services"][other]["healthcheck"], (name, other)


def test_no_service_sees_the_secrets_of_another(config):
    seen = {
        name: {volume["source"] for volume in service.get("volumes", ()) if "secrets" in volume["source"]}
        for name, service in config["services"].items()
        if name != "secrets"
    }
    assert seen == {
        "init": set(),
        "redis": {"redis-secrets"},
        "worker": {"worker-secrets"},
        "worker-gpu": {"worker-secrets"},
        "client": {"producer-secrets"},
        "gateway": {"producer-secrets", "gateway-secrets"},
        "flower": {"monitor-secrets", "flower-secrets"},
        "exporter": {"monitor-secrets"},
        "prometheus": set(),
        "grafana": {"grafana-secrets"},
    }


def mounts(service):
    """What a service finds under which path."""
    return {volume["target"]: volume["source"] for volume in service["volumes"]}


def read_yaml(path):
    return yaml.safe_load(Path(path).read_text())


def test_prometheus_asks_services_that_are_there(config):
    folder = Path(mounts(config["services"]["prometheus"])["/etc/prometheus"])
    prometheus = read_yaml(folder / "prometheus.yml")
    workers, fleet, gateways = prometheus["scrape_configs"]
    (found,) = gateways["dns_sd_configs"]
    assert (found["names"], found["port"]) == (
        ["gateway"],
        config["services"]["gateway"]["ports"][0]["target"],
    )
    (found,) = workers["dns_sd_configs"]
    assert config["services"]["worker"]["environment"]["PAGEFLEET_METRICS_PORT"] == str(found["port"])
    assert found["names"] == ["worker"]
    assert "worker" in config["services"]["worker-gpu"]["networks"]["default"]["aliases"]
    assert fleet["static_configs"] == [{"targets": ["exporter:9101"]}]
    assert config["services"]["exporter"]["command"][-1] == "9101"
    assert all((folder / name).is_file() for name in prometheus["rule_files"])


def test_grafana_finds_what_is_mounted(config):
    mounted = mounts(config["services"]["grafana"])
    folder = Path(mounted["/etc/grafana/provisioning"])
    (source,) = read_yaml(folder / "datasources" / "prometheus.yml")["datasources"]
    url = urlsplit(source["url"])
    published = config["services"][url.hostname]["ports"]
    assert url.port in {port["target"] for port in published}
    (provider,) = read_yaml(folder / "dashboards" / "pagefleet.yml")["providers"]
    assert list(Path(mounted[provider["options"]["path"]]).glob("*.json"))


def test_a_gpu_is_asked_for(config):
    gpu = config["services"]["worker-gpu"]
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert gpu["environment"]["PAGEFLEET_DEVICE"] == "cuda"
    assert gpu["build"]["args"]["TORCH_BUILD"].startswith("cu")
    assert config["services"]["init"]["build"]["args"]["TORCH_BUILD"] == "cpu"


def test_docker_is_more_patient_than_a_drain(config):
    worker = config["services"]["worker"]
    patience_s = int(re.fullmatch(r"(\d+)s", worker["stop_grace_period"])[1])
    assert patience_s >= float(worker["environment"]["PAGEFLEET_DRAIN_S"]) + 10


def test_the_gateway_asks_for_keys_and_is_more_patient_than_its_drain(config):
    from pagefleet.api.config.settings import GatewaySettings

    gateway = config["services"]["gateway"]
    given = {name.removeprefix("PAGEFLEET_").lower() for name in gateway["environment"]} - {"redis_url"}
    assert given <= set(GatewaySettings.model_fields)
    assert gateway["environment"]["PAGEFLEET_GATEWAY_KEYS_FILE"].startswith("/secrets/gateway/")
    (port,) = gateway["ports"]
    assert (port["target"], gateway["healthcheck"]["test"][2]) == (8000, "8000")
    patience_s = int(re.fullmatch(r"(\d+)s", gateway["stop_grace_period"])[1])
    assert patience_s >= float(gateway["environment"]["PAGEFLEET_GATEWAY_DRAIN_S"]) + 10


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
