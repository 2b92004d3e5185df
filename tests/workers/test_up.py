"""``pagefleet up`` with all that it starts: workers, their metrics, Flower; and what ends them."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner
from fake_hub import HubFile, fake_hub

from pagefleet.api import FleetClient, FleetSettings
from pagefleet.api.cli.main import main
from pagefleet.api.config.extras import pip_command
from pagefleet.api.config.settings import FlowerSettings
from pagefleet.api.contract.errors import ConfigurationError
from pagefleet.workers.cli.up import _print_flower, _print_gateway
from pagefleet.workers.local.flower_process import FlowerProcess
from pagefleet.workers.local.ports import free_port
from pagefleet.workers.threads.polling import wait_until

UP = [sys.executable, "-m", "pagefleet.api.cli.main", "up", "--workers", "2", "--flower-port", "0"]
UP += ["--gateway-port", "0"]
NULL = ["--model", "null", "--backend", "null"]


def two_ports():
    """One that is free, and so is the next."""
    while True:
        port = free_port()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port + 1)) != 0:
                return port


def get(url, user=None):
    """The status and the text; 0 where nobody listens."""
    headers = {"Authorization": "Basic " + base64.b64encode(user.encode()).decode()} if user else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, ""
    except OSError:
        return 0, ""


@pytest.fixture
def up(server_binary, tmp_path, monkeypatch):
    """The command with its output so far, and every process below it."""
    monkeypatch.setenv("PAGEFLEET_HOME", str(tmp_path))
    metrics_port = two_ports()
    log_file = tmp_path / "up.log"
    with log_file.open("wb") as log:
        command = [*UP, "--metrics-port", str(metrics_port), *NULL]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    process.log_file, process.metrics_port = log_file, metrics_port
    children = []
    try:
        assert wait_until(lambda: "Ctrl-C" in log_file.read_text(), 60, 0.1), log_file.read_text()
        children = psutil.Process(process.pid).children()
        yield process
    finally:
        process.kill()
        process.wait()
        psutil.wait_procs(children, timeout=1)
        for child in children:
            if child.is_running():
                child.kill()


def child_of(up, word):
    """Those that live; its own children are zombies until it has looked after them."""
    found = []
    for child in psutil.Process(up.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [child] if word in child.cmdline() else []
    return found


def test_flower_and_metrics_come_with_it_and_nothing_outlives_it(up, tmp_path):
    # Flower is there, for who knows the password; the output says where both are.
    (line,) = [line for line in up.log_file.read_text().splitlines() if line.startswith("flower ")]
    _, url, *_, users = line.split()
    assert stat.S_IMODE(os.stat(users).st_mode) == 0o600
    password = Path(users).read_text().strip()
    assert password.startswith("admin:")
    assert len(password) > 20
    assert wait_until(lambda: get(url)[0] == 401, 60, 0.1)
    assert get(f"{url}/workers", password)[0] == 200
    # It hears of both workers.
    assert wait_until(
        lambda: len(json.loads(get(f"{url}/workers?json=1", password)[1])["data"]) == 2, 60, 0.2
    )
    # So is the gateway, and it knows the workers.
    (line,) = [line for line in up.log_file.read_text().splitlines() if line.startswith("gateway ")]
    assert wait_until(lambda: get(line.split()[1].replace("/v1", "/ready"))[0] == 200, 60, 0.1)
    (line,) = [line for line in up.log_file.read_text().splitlines() if line.startswith("page ")]
    assert get(line.split()[1])[0] == 200
    # Each worker has a port of its own.
    for port in (up.metrics_port, up.metrics_port + 1):
        assert "pagefleet_num_requests_running" in get(f"http://127.0.0.1:{port}/metrics")[1]
    # What died is started again.
    (flower,), (worker, _) = child_of(up, "flower"), child_of(up, "worker")
    flower.kill()
    worker.kill()
    assert wait_until(lambda: any(each.pid != flower.pid for each in child_of(up, "flower")), 60, 0.1)
    assert f"flower pid {flower.pid} ended" in up.log_file.read_text()
    with FleetClient(FleetSettings()) as fleet:
        assert wait_until(
            lambda: len({each.pid for each in fleet.status().workers} - {worker.pid}) == 2, 60, 0.1
        )
        assert len(fleet.generate("x", max_tokens=3).result().token_ids) == 3
    # Nobody can catch SIGKILL, and all that was started ends all the same.
    children = psutil.Process(up.pid).children(recursive=True)
    assert len(children) >= 5, "two workers, a server, Flower and the guard"
    up.send_signal(signal.SIGKILL)
    up.wait()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []
    assert up.log_file.read_text().count("Warm shutdown") == 2, "the workers drained"


def test_ctrl_c_ends_a_start_that_downloads(tmp_path, monkeypatch):
    """No limit of time ends it, because a large model can take hours."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 97,
        "hidden_size": 48,
    }
    config |= {"intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 6}
    config |= {"max_position_embeddings": 64}
    weights = HubFile("model.safetensors", bytes(24 * 10**6))
    files = {"config.json": json.dumps(config).encode(), "tokenizer.json": b"{}", weights.name: weights}
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("PAGEFLEET_HOME", str(tmp_path / "home"))
    with fake_hub({"o/slow": files}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        hub.hold_after = 15 * 10**6
        command = [sys.executable, "-m", "pagefleet.api.cli.main", "up", "--no-flower", "--no-gateway"]
        with subprocess.Popen([*command, "--model", "o/slow"], stderr=subprocess.PIPE) as process:
            assert wait_until(lambda: list(tmp_path.rglob("*.pagefleet.incomplete")), 60, 0.1)
            children = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
            assert b"Traceback" not in process.stderr.read()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def test_a_port_that_is_taken(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        settings = FlowerSettings(home=tmp_path, flower_port=taken)
        with pytest.raises(ConfigurationError, match=f"flower_port: cannot listen on 127.0.0.1:{taken}"):
            FlowerProcess("redis://", settings, taken)
        # Nobody asked for the usual one.
        assert FlowerProcess("redis://", settings).port != taken
    assert FlowerProcess("redis://", settings).port == taken
    assert FlowerProcess("redis://", settings, 0).port != taken


def test_a_users_own_password_file_is_left_alone(tmp_path):
    settings = FlowerSettings(home=tmp_path / "home", flower_auth_file=tmp_path / "mine")
    flower = FlowerProcess("redis://127.0.0.1:1/0", settings, 0).start()
    # There is none: it says so itself.
    assert flower.wait(60) == 1
    assert "flower_auth_file" in flower.log_tail()
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize("home", ["/dev/null", "/proc/nowhere"])
def test_a_home_that_cannot_be_used_is_named(monkeypatch, home):
    monkeypatch.setenv("PAGEFLEET_HOME", home)
    done = CliRunner().invoke(main, ["up", *NULL])
    assert done.exit_code == 1
    assert done.output.startswith(f"Error: home: cannot write the data of the stack to {home}")
    assert "PAGEFLEET_HOME" in done.output


def test_without_the_extra_it_says_how_to_get_it(capsys):
    _print_flower(None)
    _print_gateway(None)
    assert capsys.readouterr().out.splitlines() == [
        f"flower   not installed: {pip_command(['monitor'])}",
        f"gateway  not installed: {pip_command(['gateway'])}",
    ]


@pytest.mark.parametrize("number", ["0", "-1"])
def test_a_stack_without_workers_is_refused(number):
    done = CliRunner().invoke(main, ["up", "--workers", number])
    assert (done.exit_code, f"'--workers': {number} is not in the range x>=1" in done.output) == (2, True)
