"""Settings from ./.env and ./pagefleet.toml: for commands, never for a service that makes a client."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from pagefleet.api import FleetClient
from pagefleet.api.cli.main import main
from pagefleet.api.config.settings import FleetSettings, FlowerSettings
from pagefleet.api.contract.errors import ConfigurationError
from pagefleet.workers.settings import WorkerSettings


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory whose files are read."""
    monkeypatch.delenv("PAGEFLEET_CONFIG")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_given_environment_env_file_toml_default_in_this_order(here, monkeypatch):
    assert WorkerSettings.from_files().max_num_seqs == 64
    (here / "pagefleet.toml").write_text("[worker]\nmax_num_seqs = 1\n")
    assert WorkerSettings.from_files().max_num_seqs == 1
    (here / ".env").write_text("PAGEFLEET_MAX_NUM_SEQS=2\n")
    assert WorkerSettings.from_files().max_num_seqs == 2
    monkeypatch.setenv("PAGEFLEET_MAX_NUM_SEQS", "3")
    assert WorkerSettings.from_files().max_num_seqs == 3
    assert WorkerSettings.from_files(max_num_seqs=4).max_num_seqs == 4


@pytest.mark.parametrize("variable", ["REDIS_URL", "PAGEFLEET_REDIS_URL"])
def test_the_url_has_two_names_in_the_environment_and_both_go_before_the_files(here, monkeypatch, variable):
    (here / "pagefleet.toml").write_text('redis_url = "redis://toml/0"\n')
    assert FleetSettings.from_files().url == "redis://toml/0"
    (here / ".env").write_text("PAGEFLEET_REDIS_URL=redis://env-file/0\n")
    assert FleetSettings.from_files().url == "redis://env-file/0"
    monkeypatch.setenv(variable, "redis://environment/0")
    assert FleetSettings.from_files().url == "redis://environment/0"
    assert FleetSettings.from_files(redis_url="redis://given/0").url == "redis://given/0"


@pytest.mark.parametrize("read", [FleetSettings, FleetSettings.load, FleetSettings.from_files])
def test_of_both_names_in_the_environment_ours_wins(here, monkeypatch, read):
    monkeypatch.setenv("REDIS_URL", "redis://of-another-program/0")
    monkeypatch.setenv("PAGEFLEET_REDIS_URL", "redis://ours/0")
    assert read().url == "redis://ours/0"
    assert read(redis_url="redis://given/0").url == "redis://given/0"


def test_a_byte_order_mark_does_no_harm(here):
    (here / "pagefleet.toml").write_text("connect_timeout_s = 7\n", encoding="utf-8-sig")
    (here / ".env").write_text("PAGEFLEET_SOCKET_TIMEOUT_S=8\n", encoding="utf-8-sig")
    settings = FleetSettings.from_files()
    assert (settings.connect_timeout_s, settings.socket_timeout_s) == (7, 8)


def test_a_service_that_makes_a_client_reads_no_files(here):
    (here / ".env").write_text("PAGEFLEET_REDIS_URL=redis://env-file/0\n")
    (here / "pagefleet.toml").write_text("nonsense = [")
    for settings in (FleetSettings(), FleetSettings.load(), FleetClient().settings):
        assert settings.url == "redis://127.0.0.1:6379/0"


def test_an_env_file_of_many_programs(here):
    """Compose's own names, another program's REDIS_URL and what only a worker knows are no mistakes."""
    (here / ".env").write_text(
        "PAGEFLEET_TAG=1\nREDIS_PORT=7\nREDIS_URL=redis://cache/3\nDEBUG=yes\nPAGEFLEET_SERVED_NAME=\n"
        'PAGEFLEET_ALIASES=["a", "b"]\nexport PAGEFLEET_RESULT_TTL_S="60"\n'
    )
    worker = WorkerSettings.from_files()
    assert (worker.aliases, worker.result_ttl_s, worker.served_name) == (["a", "b"], 60, None)
    assert FleetSettings.from_files().url == "redis://127.0.0.1:6379/0"


def test_tables_are_for_those_whose_name_they_have(here):
    (here / "pagefleet.toml").write_text(
        'socket_timeout_s = 1.5\n[worker]\nmodel = "m"\nsocket_timeout_s = 2.5\n'
        "[flower]\nflower_port = 1234\n"
    )
    assert FleetSettings.from_files().socket_timeout_s == 1.5
    assert (WorkerSettings.from_files().model, WorkerSettings.from_files().socket_timeout_s) == ("m", 2.5)
    assert (FlowerSettings.from_files().flower_port, FlowerSettings.from_files().socket_timeout_s) == (
        1234,
        1.5,
    )


@pytest.mark.parametrize(
    ("settings", "text", "sentence"),
    [
        (WorkerSettings, "max_num_seqs = 3", "pagefleet.toml: move max_num_seqs to the table [worker]."),
        (
            WorkerSettings,
            "[worker]\nmax_nun_seqs = 3",
            "unknown setting 'max_nun_seqs'; the most similar setting is max_num_seqs.",
        ),
        (WorkerSettings, "[worker.deep]\na = 3", "unknown setting 'deep'"),
        (
            FleetSettings,
            "max_num_seqs = 3",
            "'max_num_seqs'; settings of one command belong to its table: [worker]",
        ),
        (
            FleetSettings,
            "redis_ulr = 3",
            "pagefleet.toml: unknown setting 'redis_ulr'; the most similar setting is redis_url.",
        ),
        (
            FleetSettings,
            "[wroker]\nmodel = 1",
            "pagefleet.toml: unknown table [wroker]; the most similar table is [worker].",
        ),
        (
            FleetSettings,
            "[other]\nmodel = 1",
            "unknown table [other]; the tables are [worker], [flower] and [gateway].",
        ),
        (FleetSettings, "worker = 3", "unknown setting 'worker'"),
        (FleetSettings, "redis_url = ", "pagefleet.toml is not valid TOML: "),
        (
            FleetSettings,
            "result_ttl_s = 0",
            "result_ttl_s: Input should be greater than 0 (in pagefleet.toml).",
        ),
        (
            WorkerSettings,
            "[worker]\naliases = 3",
            "aliases: Input should be a valid list (in pagefleet.toml).",
        ),
    ],
)
def test_a_mistake_in_toml_is_one_sentence(here, settings, text, sentence):
    (here / "pagefleet.toml").write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        settings.from_files()
    assert sentence in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (b"PAGEFLEET_MAX_NUM_SEQS=many", "max_num_seqs: Input should be a valid integer"),
        (b"PAGEFLEET_ALIASES=a,b", "aliases: write the list as JSON"),
        (b"PAGEFLEET_MODEL=\xff", ".env cannot be read"),
    ],
)
def test_a_mistake_in_an_env_file_names_it(here, line, sentence):
    (here / ".env").write_bytes(line + b"\n")
    with pytest.raises(ConfigurationError) as caught:
        WorkerSettings.from_files()
    assert caught.value.message.startswith(sentence)
    assert ".env" in caught.value.message


def test_a_mistake_in_the_environment_says_so(here, monkeypatch):
    (here / "pagefleet.toml").write_text("[worker]\nmax_num_seqs = 0\n")
    monkeypatch.setenv("PAGEFLEET_MAX_NUM_SEQS", "-1")
    with pytest.raises(ConfigurationError, match=r"max_num_seqs: .* \(in the environment\)\.$"):
        WorkerSettings.from_files()
    monkeypatch.setenv("PAGEFLEET_ALIASES", "a,b")
    for load in (WorkerSettings.from_files, WorkerSettings.load):
        with pytest.raises(ConfigurationError, match=r"aliases: write the list as JSON .* the environment"):
            load()


def test_another_file_can_be_named_and_must_be_there_then(here, monkeypatch):
    (here / "pagefleet.toml").write_text("result_ttl_s = 1\n")
    (here / "other.toml").write_text("result_ttl_s = 2\n")
    monkeypatch.setenv("PAGEFLEET_CONFIG", "other.toml")
    assert FleetSettings.from_files().result_ttl_s == 2
    monkeypatch.setenv("PAGEFLEET_CONFIG", "none.toml")
    with pytest.raises(ConfigurationError, match=r"none\.toml cannot be read"):
        FleetSettings.from_files()
    (here / ".env").write_text("PAGEFLEET_RESULT_TTL_S=3\n")
    monkeypatch.setenv("PAGEFLEET_CONFIG", "")
    assert (FleetSettings.from_files().result_ttl_s, FleetSettings.files_read()) == (3600, [])


def test_a_command_reads_them_and_a_mistake_is_its_error(here):
    (here / "pagefleet.toml").write_text('redis_url = "redis://127.0.0.1:1/0"\n')
    done = CliRunner().invoke(main, ["status"])
    assert (done.exit_code, "redis://127.0.0.1:1/0" in done.output) == (1, True)
    (here / "pagefleet.toml").write_text("redis_ulr = 1\n")
    done = CliRunner().invoke(main, ["generate", "x"])
    assert done.exit_code == 1
    assert done.output.startswith("Error: pagefleet.toml: unknown setting 'redis_ulr'")


@pytest.mark.parametrize(
    "arguments",
    [
        ["chat"], ["dead", "list"], ["exporter"], ["flower"], ["generate", "x"], ["health"],
        ["models", "list"], ["prepare"], ["replay", "x"], ["status"], ["top", "--once"], ["up"], ["worker"],
    ],
    ids=lambda arguments: arguments[0],
)  # fmt: skip
def test_every_command_reads_the_files(here, arguments):
    (here / "pagefleet.toml").write_text("redis_ulr = 'x'\n")
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 1, done.output
    assert "redis_ulr" in done.output
    assert "pagefleet.toml" in done.output
