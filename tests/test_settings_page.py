"""docs/settings.md is written from the settings' own models, and is up to date."""

from __future__ import annotations

from pathlib import Path

import pytest

from pagefleet.api.config.settings import FlowerSettings
from pagefleet.workers.settings import WorkerSettings

ROOT = Path(__file__).parents[1]


@pytest.fixture
def settings_page(monkeypatch):
    """No package of the wheel: imported from the repository's root."""
    monkeypatch.syspath_prepend(ROOT)
    from ops import settings_page

    return settings_page


def test_the_page_is_what_the_models_say(settings_page):
    assert settings_page.PAGE.read_text() == settings_page.page(), "run python -m ops.settings_page"


def test_it_has_every_setting_with_its_variable(settings_page, monkeypatch):
    text = settings_page.page()
    for name in WorkerSettings.model_fields:
        assert f"| `{name}` |" in text
        assert f"`PAGEFLEET_{name.upper()}`" in text
    # And the variables are those that are read.
    monkeypatch.setenv("PAGEFLEET_MAX_NUM_SEQS", "7")
    monkeypatch.setenv("PAGEFLEET_ALIASES", '["a", "b"]')
    monkeypatch.setenv("PAGEFLEET_REDIS_URL", "redis://one/0")
    settings = WorkerSettings()
    assert (settings.max_num_seqs, settings.aliases, settings.url) == (7, ["a", "b"], "redis://one/0")


def test_its_toml_is_one_that_is_read(settings_page, monkeypatch, tmp_path):
    for name in ("producer", "worker"):
        (tmp_path / name).write_text(f"secret-of-{name}")
    text = settings_page.EXAMPLE.replace("/run/secrets", str(tmp_path))
    (tmp_path / "pagefleet.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PAGEFLEET_CONFIG")
    worker, flower = WorkerSettings.from_files(), FlowerSettings.from_files()
    assert (worker.max_num_seqs, worker.aliases) == (32, ["small", "default"])
    assert worker.url == "rediss://worker:secret-of-worker@redis.internal:6379/0"
    assert flower.flower_port == 5556
    assert flower.url == "rediss://producer:secret-of-producer@redis.internal:6379/0"


def test_a_setting_without_a_description_is_refused(settings_page):
    from pydantic.fields import FieldInfo

    with pytest.raises(ValueError, match="nameless"):
        settings_page._table({"nameless": FieldInfo(default=1)})
