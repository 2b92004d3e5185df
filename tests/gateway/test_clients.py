"""Clients that others wrote, against a running gateway: what each is given, by ability.

A client is a program in clients/, in a process of its own: they are slow to import and warn of each other.
What one of them can be asked is a function of its output here; tools will be one more of ``ABILITIES``.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
LITELLM = HERE.parents[1] / "build" / "litellm" / "bin" / "python"
HI = [{"role": "user", "content": "Hi"}]
SEED_7 = 'zF E;@l9!Uhk= 4"'
NUM_USED = 21 + 16


def an_answer(said):
    return said == [SEED_7, NUM_USED]


def a_stream(said):
    pieces, num_used = said
    return "".join(pieces) == SEED_7 and len(pieces) > 1 and num_used == NUM_USED


def a_point(said):
    return said.keys() == {"x", "colour"} and said["colour"] in ("red", "blue")


def a_refusal(said):
    status, message = said
    return status == 404 and "The model `nobody` does not exist" in message


ABILITIES = {"answer": an_answer, "stream": a_stream, "parsed": a_point, "refused": a_refusal}
CLIENTS = {
    "openai_sync": sys.executable,
    "openai_async": sys.executable,
    "langchain_openai_chat": sys.executable,
    "litellm_completion": str(LITELLM),
}


@pytest.fixture(scope="module")
def said_by(gateway, give_up):
    """What a client was given; each runs once."""

    @functools.cache
    def run(client):
        python = CLIENTS[client]
        # The environment exists before its packages do.
        if python == str(LITELLM) and not (LITELLM.parents[1] / ".installed").exists():
            give_up(f"no {python}: make litellm", "litellm")
        command = [python, str(HERE / "clients" / f"{client}.py"), f"{gateway.url}/v1", json.dumps(HI)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.mark.parametrize("ability", ABILITIES)
@pytest.mark.parametrize("client", CLIENTS)
def test_it_gets(said_by, client, ability):
    said = said_by(client)[ability]
    assert ABILITIES[ability](said), said
