"""The password of the Redis URL's user, from a file: a secret that stands in no environment."""

from __future__ import annotations

import pytest

from pagefleet.api.config.settings import FleetSettings
from pagefleet.api.contract.errors import ConfigurationError


@pytest.fixture
def password_file(tmp_path):
    file = tmp_path / "password"
    file.write_text("p@ss/word:%\n")
    return file


def test_it_joins_the_url_in_a_form_that_redis_reads_back(password_file):
    from redis.connection import parse_url

    url = "rediss://worker@host:6380/2"
    settings = FleetSettings(redis_url=url, redis_password_file=password_file)
    assert settings.url == "rediss://worker:p%40ss%2Fword%3A%25@host:6380/2"
    read = parse_url(settings.url)
    assert (read["username"], read["password"], read["host"], read["port"], read["db"]) == (
        "worker", "p@ss/word:%", "host", 6380, 2,
    )  # fmt: skip


def test_it_is_found_in_the_environment_and_needs_no_user(password_file, monkeypatch):
    monkeypatch.setenv("PAGEFLEET_REDIS_PASSWORD_FILE", str(password_file))
    assert FleetSettings(redis_url="redis://host/0").url == "redis://:p%40ss%2Fword%3A%25@host/0"
    assert "p@ss" not in repr(FleetSettings(redis_url="redis://host/0"))


def test_two_passwords_or_no_file_are_one_sentence(password_file, tmp_path):
    settings = FleetSettings(redis_url="redis://worker:other@host/0", redis_password_file=password_file)
    with pytest.raises(ConfigurationError, match="already contains a password"):
        _ = settings.url
    with pytest.raises(ConfigurationError, match="redis_password_file"):
        FleetSettings.load(redis_password_file=tmp_path / "none")
