"""Settings: from the environment, checked, with names that producers can use."""

from __future__ import annotations

import pytest

from pagefleet.api.config.settings import FlowerSettings
from pagefleet.api.contract.errors import ConfigurationError
from pagefleet.workers.local.flower_process import FlowerProcess
from pagefleet.workers.local.local_stack import WorkerProcess
from pagefleet.workers.local.ports import free_port
from pagefleet.workers.settings import WorkerSettings, new_worker_id


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("smollm2-135m-instruct", "smollm2-135m-instruct"),
        ("Qwen/Qwen3-0.6B", "qwen3-0.6b"),
        ("/models/My-Model", "my-model"),
        ("/models/some.Q4_K_M.gguf", "some.q4_k_m"),
    ],
)
def test_a_model_has_a_name_for_producers(model, name):
    assert WorkerSettings(model=model).name == name


def test_the_environment_is_read(monkeypatch):
    monkeypatch.setenv("PAGEFLEET_MODEL", "from-the-environment")
    monkeypatch.setenv("PAGEFLEET_MAX_NUM_SEQS", "7")
    monkeypatch.setenv("REDIS_URL", "redis://elsewhere:6380/2")
    settings = WorkerSettings()
    assert (settings.model, settings.max_num_seqs) == ("from-the-environment", 7)
    assert settings.url == "redis://elsewhere:6380/2"
    # What is given goes before what the environment says.
    assert WorkerSettings(model="given").model == "given"


def test_the_metrics_port_is_off_until_it_is_given(monkeypatch):
    assert WorkerSettings().metrics_port is None
    monkeypatch.setenv("PAGEFLEET_METRICS_PORT", "9100")
    assert (WorkerSettings().metrics_port, WorkerSettings().metrics_host) == (9100, "127.0.0.1")
    monkeypatch.setenv("PAGEFLEET_METRICS_HOST", "0.0.0.0")
    assert WorkerSettings().metrics_host == "0.0.0.0"


@pytest.mark.parametrize(("field", "value"), [("max_num_seqs", 0), ("dtype", "int3"), ("lease_s", -1.0)])
def test_a_wrong_value_is_one_sentence_that_names_it(field, value):
    with pytest.raises(ConfigurationError, match=field):
        WorkerSettings.load(**{field: value})


def test_a_worker_id_is_new_at_each_start():
    assert new_worker_id() != new_worker_id()


def test_what_up_starts_knows_its_server_whatever_the_environment_says(monkeypatch, tmp_path):
    for name in ("REDIS_URL", "PAGEFLEET_REDIS_URL"):
        monkeypatch.setenv(name, "redis://elsewhere/0")
    flower = FlowerSettings(home=tmp_path, flower_port=free_port())
    for process in (WorkerProcess("redis://here/0", []), FlowerProcess("redis://here/0", flower)):
        for name, value in process._environment.items():
            monkeypatch.setenv(name, value)
        assert WorkerSettings.from_files().url == "redis://here/0"
