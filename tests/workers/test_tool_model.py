"""A real model that was trained to call tools. `make tool-model` fetches it; the tests skip without it."""

from __future__ import annotations

import json
import signal

import httpx
import pytest

from ops.tool_model import FILE
from pagefleet.api import FleetClient
from pagefleet.api.config.settings import GatewaySettings
from pagefleet.workers.local.gateway_process import GatewayProcess
from pagefleet.workers.local.local_stack import LocalStack

MODEL = "coder"
CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 30},
        "country": {"type": "string", "maxLength": 30},
        "sights": {
            "type": "array",
            "items": {"type": "string", "maxLength": 30},
            "minItems": 3,
            "maxItems": 3,
        },
    },
    "required": ["city", "country", "sights"],
}


def tool(name, description, **properties):
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters},
    }


TOOLS = [
    tool("get_weather", "Get the current weather in a city", city={"type": "string"}),
    tool("get_time", "Get the current time in a time zone", timezone={"type": "string"}),
    tool("add", "Add two numbers", a={"type": "number"}, b={"type": "number"}),
]
PROMPTS = {
    "What is the weather in Paris right now?": "get_weather",
    "What time is it in the time zone Europe/Berlin?": "get_time",
    "Use the tool to add 17 and 25.": "add",
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FILE.exists(), reason="the model is not here: make tool-model"),
]


@pytest.fixture(scope="module")
def stack(server_binary, own_environment, tmp_path_factory):
    options = ["--model", str(FILE), "--served-name", MODEL, "--dtype", "float32", "--max-model-len", "2048",
               "--kv-memory", "256MiB"]  # fmt: skip
    home = tmp_path_factory.mktemp("coder")
    with LocalStack(home, options, num_workers=2, drain_s=0.0) as stack:
        yield stack


def owner_of(stack, fleet, job_id):
    (pid,) = (worker.pid for worker in fleet.status().workers if job_id in worker.job_ids)
    return next(worker for worker in stack.workers if worker.pid == pid)


def test_what_the_model_writes_is_a_call(stack):
    """The template asks for <tool_call>, but the model answers with an object in a code fence."""
    gateway = GatewayProcess(stack.redis_url, GatewaySettings(), 0).start().wait_ready()
    try:
        for prompt, name in PROMPTS.items():
            messages = [{"role": "user", "content": prompt}]
            body = {"model": MODEL, "messages": messages, "tools": TOOLS, "tool_choice": "auto",
                    "temperature": 0, "max_tokens": 96}  # fmt: skip
            reply = httpx.post(f"{gateway.url}/v1/chat/completions", json=body, timeout=300)
            (choice,) = reply.json()["choices"]
            assert choice["finish_reason"] == "tool_calls", choice
            (call,) = choice["message"]["tool_calls"]
            assert (call["function"]["name"], choice["message"]["content"]) == (name, None)
            assert json.loads(call["function"]["arguments"])
    finally:
        gateway.terminate()
        gateway.wait(60)


def test_a_kill_in_the_middle_of_two_documents_gives_the_same_texts(stack):
    chat = [{"role": "user", "content": "Describe the capital of France as JSON."}]
    form = {"json_schema": CITY, "wind_down": True}
    asked = {"n": 2, "seed": 11, "temperature": 0.8, "max_tokens": 120, "structured_outputs": form}
    with FleetClient(redis_url=stack.redis_url) as fleet:
        calm = fleet.chat(chat, **asked).result()
        stream = fleet.chat(chat, **asked)
        num_tokens, is_killed = 0, False
        for chunk in stream:
            num_tokens += len(chunk.token_ids)
            if num_tokens >= 16 and not is_killed:
                owner_of(stack, fleet, stream.job_id).send_signal(signal.SIGKILL)
                is_killed = True
        moved = stream.result()
    assert moved.attempts == 2
    assert [choice.text for choice in moved.choices] == [choice.text for choice in calm.choices]
    for choice in moved.choices:
        assert json.loads(choice.text).keys() == CITY["properties"].keys()
