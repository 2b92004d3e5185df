"""The real model through the whole fleet: the engine's tokens, text, chat, rejected requests."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from pagefleet.api import ContextTooLong, FleetClient, InvalidRequest
from pagefleet.api.config.settings import GatewaySettings
from pagefleet.workers.local.gateway_process import GatewayProcess
from pagefleet.workers.local.local_stack import LocalStack

MODEL = "smollm2-135m-instruct"
PROMPTS = [
    "The capital of France is",
    "Once upon a time there was a",
    "import numpy as np\n",
    "Water boils at",
    "Zwölf Boxkämpfer jagen",
    "The first ten prime numbers are",
]


@pytest.fixture(scope="module")
def model_stack(server_binary, own_environment, tmp_path_factory):
    with LocalStack(
        tmp_path_factory.mktemp("model"),
        ["--model", MODEL, "--dtype", "float32", "--max-num-batched-tokens", "256"],
    ) as stack:
        yield stack


@pytest.fixture
def model_fleet(model_stack):
    with FleetClient(redis_url=model_stack.redis_url) as fleet:
        yield fleet


def test_greedy_tokens_equal_the_engines_own(model_fleet):
    from pagefleet.engine import LLM, SamplingParams

    streams = [model_fleet.generate(prompt, max_tokens=24, temperature=0.0) for prompt in PROMPTS]
    results = [stream.result() for stream in streams]
    llm = LLM(model=MODEL, dtype="float32", num_blocks=256, max_num_batched_tokens=256)
    outputs = llm.generate(PROMPTS, SamplingParams(max_tokens=24, temperature=0.0))
    for result, output in zip(results, outputs, strict=True):
        assert result.token_ids == list(output.token_ids)
        assert result.text == output.text
        assert result.finish_reason == output.finish_reason


def test_a_seed_gives_the_same_answer_alone_and_in_company(model_fleet):
    alone = model_fleet.chat([{"role": "user", "content": "Name a colour."}], max_tokens=24, seed=5).text()
    with ThreadPoolExecutor(8) as pool:
        others = [
            pool.submit(lambda n=n: model_fleet.generate(f"Number {n}", max_tokens=24, seed=n).text())
            for n in range(7)
        ]
        again = model_fleet.chat([{"role": "user", "content": "Name a colour."}], max_tokens=24, seed=5)
        assert again.text() == alone
        assert all(other.result() for other in others)


def test_rules_for_tokens_hold_through_the_fleet(model_fleet):
    """A banned first word is not generated; with two allowed tokens, no other is generated."""
    greedy = {"temperature": 0.0, "max_tokens": 8}
    assert "Paris" in model_fleet.generate(PROMPTS[0], **greedy).text()
    assert "Paris" not in model_fleet.generate(PROMPTS[0], bad_words="Paris", **greedy).text()
    limited = model_fleet.generate(PROMPTS[0], allowed_token_ids=[260, 300], max_tokens=8).result()
    assert len(limited.token_ids) == 8
    assert set(limited.token_ids) <= {260, 300}


def test_chunks_join_to_the_text_and_utf8_is_never_cut(model_fleet):
    stream = model_fleet.generate("Emoji: 🙂🙃", max_tokens=40, temperature=1.2, seed=3)
    chunks = list(stream)
    assert "".join(chunk.text for chunk in chunks) == stream.result().text
    assert [token for chunk in chunks for token in chunk.token_ids] == stream.result().token_ids


def test_a_stop_string_ends_the_text_before_it(model_fleet):
    whole = model_fleet.generate("1, 2, 3, 4,", max_tokens=24, temperature=0.0).text()
    assert " 7" in whole
    stream = model_fleet.generate("1, 2, 3, 4,", max_tokens=24, temperature=0.0, stop=" 7")
    assert stream.text() == whole[: whole.index(" 7")]
    assert stream.result().finish_reason == "stop"


def test_a_text_longer_than_the_context_is_refused_by_the_worker(model_fleet):
    with pytest.raises(ContextTooLong, match="do not fit the context"):
        model_fleet.generate("word " * 20_000).result()


def test_a_call_of_a_tool_that_is_demanded_parses(model_stack):
    """For a model whose template has no tools: greedy, at a high temperature, and with a truncated text."""
    gateway = GatewayProcess(model_stack.redis_url, GatewaySettings(), 0).start().wait_ready()
    city = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
    tools = [
        {"type": "function", "function": {"name": name, "parameters": {**city, "required": ["city"]}}}
        for name in ("weather", "sunset")
    ]
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Is it raining in Paris?"}],
        "tools": tools,
        "max_tokens": 64,
    }
    try:
        for temperature, choice in ((1.5, "required"), (0, tools[1])):
            asked = {**body, "tool_choice": choice, "temperature": temperature, "seed": 7}
            reply = httpx.post(f"{gateway.url}/v1/chat/completions", json=asked, timeout=120)
            (said,) = reply.json()["choices"]
            calls = [call["function"] for call in said["message"]["tool_calls"]]
            assert {call["name"] for call in calls} <= {"weather", "sunset"}
            for arguments in (json.loads(call["arguments"]) for call in calls):
                assert isinstance(arguments["city"], str)
                assert arguments.keys() <= {"city", "days"}
            assert said["finish_reason"] == ("tool_calls" if choice == "required" else "stop")
    finally:
        gateway.terminate()
        gateway.wait(60)


def test_a_chat_that_the_template_refuses_is_refused_with_its_reason(own_environment, tmp_path):
    """The worker has the template from a file: it rejects system messages, the checkpoint's does not."""
    template = tmp_path / "strict.jinja"
    template.write_text(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system messages') }}"
        "{% endif %}{{ m.content }}{% endfor %}"
    )
    options = ["--model", MODEL, "--served-name", "strict", "--chat-template", str(template)]
    with (
        LocalStack(tmp_path / "stack", options) as stack,
        FleetClient(redis_url=stack.redis_url) as fleet,
    ):
        assert fleet.chat([{"role": "user", "content": "Hi"}], max_tokens=2).result().finish_reason
        refused = fleet.chat([{"role": "system", "content": "x"}, {"role": "user", "content": "y"}])
        with pytest.raises(InvalidRequest, match="no system messages") as caught:
            next(refused)
        assert caught.value.param == "messages"
        assert fleet.models()[0].name == "strict"


def test_a_model_without_a_template_completes_texts_and_says_how_to_give_it_one(own_environment, tmp_path):
    """To a client, to the gateway's, and to one that asks for tokens. A bad template stops the start."""
    from pagefleet.engine.loading.checkpoint import resolve

    folder = tmp_path / "base"
    folder.mkdir()
    for file in resolve(MODEL, None).folder.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "tokenizer_config.json").unlink()
    template = tmp_path / "bad.jinja"
    template.write_text("{{ bos_token }}\n{% for m in messages %}\n{{ m.content }\n{% endfor %}")
    messages = [{"role": "user", "content": "Hi"}]
    with (
        LocalStack(tmp_path / "stack", ["--model", str(folder)]) as stack,
        FleetClient(redis_url=stack.redis_url) as fleet,
    ):
        assert len(fleet.generate("Once upon a time", max_tokens=3).result().token_ids) == 3
        with pytest.raises(InvalidRequest, match=r"no chat template; .* `--chat-template FILE`") as caught:
            next(fleet.chat(messages))
        assert caught.value.param == "messages"
        with pytest.raises(InvalidRequest, match="no chat template"):
            fleet.tokenize(messages=messages)
        gateway = GatewayProcess(stack.redis_url, GatewaySettings(), 0).start().wait_ready()
        try:
            for stream in (False, True):
                body = {"model": "base", "messages": messages, "stream": stream}
                reply = httpx.post(f"{gateway.url}/v1/chat/completions", json=body, timeout=30)
                assert reply.status_code == 400, reply.text
                error = reply.json()["error"]
                assert (error["type"], error["param"]) == ("invalid_request_error", "messages")
                assert "`--chat-template FILE`" in error["message"]
        finally:
            gateway.terminate()
            gateway.wait(20)
        command = [sys.executable, "-m", "pagefleet.api.cli.main", "worker", "--redis-url", stack.redis_url]
        done = subprocess.run(
            [*command, "--model", str(folder), "--chat-template", str(template)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1] == (
            f"Error: chat_template: {template} is not a valid Jinja template (line 3: unexpected '}}'); "
            "correct it."
        )


def test_the_demo_runs_without_a_terminal(own_environment):
    done = subprocess.run(
        [sys.executable, "-m", "pagefleet.api.cli.main", "demo", "--max-tokens", "24"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    for figure in ("time to first token", "inter-token latency", "tok/s", "largest 16", "prefix-cache hits"):
        assert figure in done.stdout
    assert "\x1b[" not in done.stdout
