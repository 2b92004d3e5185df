"""Every snippet of PAGES is run here, line by line.

There are two exceptions. Of a ``make`` line only the target is checked, because ``make test`` is this suite.
Lines that need containers are run by tests/compose (``make compose-test``).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

import httpx
import pytest
from snippets import ROOT, blocks_of, commands_of

from pagefleet.api.cli.main import main
from pagefleet.workers.local.ports import free_port

PAGES = ["README.md", "docs/python.md", "docs/commands.md", "docs/gateway.md"]
BLOCKS = [block for page in PAGES for block in blocks_of(page)]
LINES = [line for block in BLOCKS if block.language == "bash" for line in commands_of(block)]
MODEL = "smollm2-135m-instruct"
SERVED_AT = "http://127.0.0.1:8000"


def lines_of(*programs):
    return [line for line in LINES if line.program in programs]


def python_of(page):
    """The Python blocks of the page, from its top to its end."""
    return [block.text for block in BLOCKS if block.page == page and block.language == "python"]


def test_nothing_is_left_out():
    assert {block.language for block in BLOCKS} == {"bash", "python", ""}
    assert {line.program for line in LINES} == {"make", "source", "docker", "curl", "pagefleet"}
    elsewhere = {line.command for line in lines_of("pagefleet") if line.page != "docs/gateway.md"}
    assert elsewhere == {"pagefleet up"}, "else more must run there"
    # The picture of a job's path, and the table of commands.
    assert [block.text.split()[0] for block in BLOCKS if not block.language] == ["your", "pagefleet"]


@pytest.fixture(scope="module")
def job_id(gateway):
    body = {"model": "null", "prompt": "Hi", "max_tokens": 20, "seed": 7}
    return httpx.post(f"{gateway.url}/v1/completions", json=body).json()["id"]


@pytest.mark.parametrize("line", [line.command for line in lines_of("curl")])
def test_curl(gateway, job_id, line):
    environment = {**os.environ, "GATEWAY": gateway.url, "MODEL": "null", "JOB": job_id}
    line = line.replace(SERVED_AT, gateway.url).replace(MODEL, "null")
    done = subprocess.run(
        ["bash", "-euc", line.replace("curl ", "curl --fail-with-body ", 1)],
        env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert any(name in done.stdout for name in ('"object":', '"tokens":', '"prompt":'))
    assert '"error"' not in done.stdout


@pytest.mark.parametrize("line", [line.command for line in lines_of("make")])
def test_make(line):
    done = subprocess.run([*line.split(), "--dry-run"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_source():
    """The environment that `make` leaves has an activation script, and the command in it."""
    (line,) = [line.command for line in lines_of("source")]
    if not (ROOT / ".venv").exists():
        pytest.skip("the tests run in another environment")
    script = f"{line} && command -v pagefleet"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == str(ROOT / ".venv/bin/pagefleet")


def test_docker():
    """tests/compose runs both: the stack comes up and waits, and its client generates."""
    up, run = [line.command.split() for line in lines_of("docker")]
    tested = (ROOT / "tests" / "compose" / "test_compose.py").read_text()
    assert (up[2:], '"up", "--detach", "--wait"' in tested) == (["up", "-d", "--wait"], True)
    wanted = ["run", "--rm", "client", "generate", "'Once", "upon", "a", "time'"]
    assert (run[2:], '.client("generate", "Once upon a time"' in tested) == (wanted, True)


def test_the_table_of_commands():
    """It lists every command, and no command that does not exist."""
    (table,) = [block.text for block in BLOCKS if block.page == "docs/commands.md" and not block.language]
    assert set(re.findall(r"pagefleet ([a-z]+)", table)) == set(main.list_commands(None))


def without_engine(page):
    return [text for text in python_of(page) if "LLM" not in text]


@pytest.mark.parametrize(("page", "num_blocks"), [("README.md", 1), ("docs/python.md", 12)])
def test_python_over_a_fleet(null_stack, monkeypatch, capsys, page, num_blocks):
    """The blocks in their order, in one namespace; the null engine's answers are kept short."""
    monkeypatch.setenv("REDIS_URL", null_stack.redis_url)
    blocks = without_engine(page)
    assert len(blocks) == num_blocks
    space = {}
    try:
        for text in blocks:
            program = text.replace("temperature=0.7", "temperature=0.7, max_tokens=64")
            exec(compile(program, page, "exec"), space)
            if "print" in text:
                assert len(capsys.readouterr().out) > 1
    finally:
        space["fleet"].close()


def test_the_engine_without_a_queue():
    (text,) = [text for text in python_of("docs/python.md") if "LLM" in text]
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) >= 20


def test_the_gateways_python(gateway):
    (text,) = python_of("docs/gateway.md")
    space = {}
    exec(compile(text.replace(SERVED_AT, gateway.url), "gateway.md", "exec"), space)
    with space["client"] as client:
        assert "null" in [model.id for model in client.models.list()]


def pagefleet(line, folder, environment):
    command = [sys.executable, "-m", "pagefleet.api.cli.main", *line.split()[1:]]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_pagefleet(null_stack, tmp_path):
    """In their order, as a reader types them: a key is added, listed, let in, and revoked."""
    environment = {**os.environ, "REDIS_URL": null_stack.redis_url}
    keys = []
    for line in [line.command for line in lines_of("pagefleet")]:
        if line == "pagefleet up":
            continue  # tests/workers/test_up.py runs it
        if "serve" in line:
            serve(line, tmp_path, environment, keys)
            continue
        process = pagefleet(line.replace("1a2b3c4d", keys[-1][3:11] if keys else ""), tmp_path, environment)
        told, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        if "keys add" in line:
            keys.append(told.strip())
        elif "keys revoke" in line:
            keys.pop()


def serve(line, folder, environment, keys):
    """Until it has answered who may ask."""
    port = free_port()
    line = line.replace("--port 8000", "") + f" --port {port}"
    process = pagefleet(line, folder, environment)
    try:
        assert f":{port}" in process.stderr.readline()
        headers = {"authorization": f"Bearer {keys[-1]}"} if "--keys-" in line else {}
        reply = httpx.get(f"http://127.0.0.1:{port}/v1/models", headers=headers)
        assert reply.status_code == 200
    finally:
        process.terminate()
        process.communicate(timeout=60)
