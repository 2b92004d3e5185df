"""The commands: found through entry points, driven as a user drives them, against the null worker."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from importlib.metadata import version

import pytest
from click.testing import CliRunner

from pagefleet.api import FleetClient, FleetSettings
from pagefleet.api.cli.main import main
from pagefleet.api.cli.waiting import reason_to_wait
from pagefleet.api.config.extras import pip_command
from pagefleet.api.contract import keys
from pagefleet.api.contract.fleet_status import QueueStatus, RefusedJob, RunningJob
from pagefleet.api.protocol.job_store import JobStore

SEED_7 = 'zF E;@l9!Uhk= 4"'
COMMANDS = ["bench", "chat", "completion", "dead", "demo", "doctor", "exporter", "flower", "generate"]
COMMANDS += ["health", "models", "prepare", "replay", "status", "top", "up", "worker"]


def pagefleet(*arguments, **options):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], **options)


@pytest.mark.parametrize("command", [("generate", "Hello"), ("chat",)])
@pytest.mark.parametrize("seconds", ["0", "-1"])
def test_a_timeout_that_is_not_positive_is_refused(command, seconds):
    done = pagefleet(*command, "--timeout", seconds)
    assert done.exit_code == 2
    assert f"'--timeout': {float(seconds)} is not in the range x>0." in done.output


@pytest.fixture
def url(null_stack, monkeypatch):
    monkeypatch.setenv("REDIS_URL", null_stack.redis_url)
    return null_stack.redis_url


class TestHelp:
    def test_it_lists_every_command(self):
        done = pagefleet("--help")
        listed = [line.split()[0] for line in done.output.split("Commands:")[1].splitlines() if line.strip()]
        assert sorted(set(listed) & set(COMMANDS)) == COMMANDS
        assert done.exit_code == 0

    @pytest.mark.parametrize("command", COMMANDS)
    def test_every_command_explains_itself(self, command):
        done = pagefleet(command, "--help")
        assert done.exit_code == 0
        assert f"Usage: main {command}" in done.output

    def test_the_version(self):
        assert pagefleet("--version").output == f"pagefleet, version {version('pagefleet')}\n"

    def test_an_unknown_command(self):
        done = pagefleet("generat")
        assert done.exit_code == 2
        assert "No such command" in done.output


BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "torch" else real(name, package)
sys.meta_path.insert(0, Block())
from pagefleet.api.cli.main import main
main(sys.argv[1:], prog_name="pagefleet")
"""


class TestAMissingExtra:
    """`pip install pagefleet` alone: torch cannot be found."""

    def run(self, *arguments):
        return subprocess.run(
            [sys.executable, "-c", BLOCKED, *arguments], capture_output=True, text=True, timeout=60
        )

    def test_the_command_is_listed(self):
        done = self.run("--help")
        assert done.returncode == 0
        (line,) = [line for line in done.stdout.splitlines() if line.strip().startswith("worker ")]
        assert line.strip().endswith("Not installed; `pagefleet worker` shows how to install it")

    @pytest.mark.parametrize(
        "arguments", [("worker",), ("worker", "--model", "m"), ("up", "--whatever", "x")]
    )
    def test_running_it_names_the_pip_command(self, arguments):
        done = self.run(*arguments)
        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr == (
            f"Error: `pagefleet {arguments[0]}` is not installed: run {pip_command(['worker'])}\n"
        )

    def test_a_subcommand_is_named_with_its_group(self):
        done = self.run("models", "families")
        assert done.returncode == 1
        assert done.stderr.startswith("Error: `pagefleet models families` is not installed: run ")

    def test_the_others_work(self):
        done = self.run("generate", "--help")
        assert done.returncode == 0
        assert "Generate text that continues PROMPT." in done.stdout

    def test_a_plugin_with_an_extra_of_its_own_does_not_break_the_list(self, monkeypatch):
        from importlib.metadata import EntryPoint

        from pagefleet.api.cli import main as module

        plugin = EntryPoint("plug", "pagefleet.api.cli.status:status [mystery]", module.COMMAND_GROUP)
        monkeypatch.setattr(module, "entry_points", lambda group: [plugin])
        # A group of its own: the real one has found its commands already.
        group = module.CommandGroup("pagefleet")
        done = CliRunner().invoke(group, ["--help"])
        assert done.exit_code == 0, done.exception
        assert "plug" in done.output


class TestGenerate:
    def test_it_streams_the_text(self, url):
        done = pagefleet("generate", "Hello", "--seed", 7, "--max-tokens", 16)
        assert (done.exit_code, done.output) == (0, SEED_7 + "\n")

    def test_the_prompt_from_standard_input_and_json(self, url):
        done = pagefleet("generate", "-", "--seed", 7, "--max-tokens", 16, "--json", input="Hello\n")
        result = json.loads(done.output)
        assert (result["state"], result["choices"][0]["text"]) == ("D", SEED_7)
        assert result["num_prompt_tokens"] == 7

    def test_stop_strings(self, url):
        done = pagefleet("generate", "Hello", "--seed", 7, "--stop", "l9!", "--stop", "Uh")
        assert done.output == SEED_7[: SEED_7.index("l9!")] + "\n"

    def test_the_url_as_an_option(self, null_stack):
        done = pagefleet(
            "generate", "Hello", "--seed", 7, "--max-tokens", 4, "--redis-url", null_stack.redis_url
        )
        assert done.output == SEED_7[:4] + "\n"

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (["Hello", "--max-tokens", "0"], "Error: max_tokens: "),
            (["Hello", "--model", "nobody"], "Error: model: 'nobody' is unknown"),
            ([""], "Error: prompt: must not be empty."),
            (["x" * 5000], "Error: prompt: 5001 tokens do not fit"),
        ],
    )
    def test_an_error_is_one_sentence(self, url, arguments, sentence):
        done = pagefleet("generate", *arguments)
        assert done.exit_code == 1
        assert done.output.startswith(sentence)
        assert len(done.output.splitlines()) == 1

    def test_it_says_what_it_waits_for(self, null_stack, ghost, url):
        """No worker serves the model; then its job is cancelled from elsewhere, so that the command ends."""
        process = subprocess.Popen(
            [sys.executable, "-m", "pagefleet.api.cli.main", "generate", "Hello", "--model", ghost],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        notice = process.stderr.readline()
        assert (
            notice
            == f"waiting: no worker serves {ghost}; start one with `pagefleet worker --model {ghost}`.\n"
        )
        with FleetClient(redis_url=url) as fleet:
            store = JobStore(FleetSettings(redis_url=url))
            (job_id,) = store.redis.zrange(keys.open_jobs(keys.queue(ghost, "interactive")), 0, -1)
            store.close_connections()
            fleet.cancel(job_id)
        assert process.communicate(timeout=60) == ("\n", "")

    @pytest.mark.parametrize(
        ("changes", "sentence"),
        [
            ({}, "no worker serves m; start one"),
            ({"workers": True}, "the job is queued; 7 messages wait for m."),
            (
                {"workers": True, "running": [RunningJob("j", "m", "w", 0, 1, 2.0)]},
                "a worker is running the job",
            ),
            ({"workers": True, "refused": [RefusedJob("j", "m", "other weights")]}, "back: other weights."),
        ],
    )
    def test_each_reason_has_a_sentence(self, null_stack, fleet, changes, sentence):
        now = fleet.status()
        workers = [worker.model_copy(update={"model": "m"}) for worker in now.workers]
        queues = [QueueStatus("q", "m", "interactive", 7, 8), QueueStatus("p", "other", "batch", 9, 9)]
        changes |= {"workers": workers if changes.pop("workers", False) else [], "queues": queues}
        assert sentence in reason_to_wait(dataclasses.replace(now, **changes), "m", "j")

    def test_ctrl_c_cancels_the_job(self, url, fleet):
        process = subprocess.Popen(
            [sys.executable, "-m", "pagefleet.api.cli.main", "generate", "Hello", "--max-tokens", "3000"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            # A shell starts what runs in its background without Ctrl-C, and so its children.
            preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        assert process.stdout.read(1), "it has begun"
        (job,) = fleet.status().running
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 130
        assert stderr.strip() == b""
        assert fleet.attach(job.job_id, idle_timeout=10).result().finish_reason == "cancelled"


class TestStatusAndModels:
    def test_status_as_tables(self, url):
        done = pagefleet("status")
        assert done.exit_code == 0
        for word in (
            "workers",
            "queues",
            "running jobs",
            "models",
            "pagefleet.null.interactive",
            "pagefleet.null.batch",
            "4096",
        ):
            assert word in done.output

    def test_status_as_json(self, url, fleet):
        stream = fleet.generate("The secret prompt", max_tokens=400)
        next(stream)
        done = pagefleet("status", "--json")
        stream.cancel()
        status = json.loads(done.output)
        assert [model["name"] for model in status["models"]] == ["null"]
        assert [worker["model"] for worker in status["workers"]] == ["null"]
        assert stream.job_id in [job["job_id"] for job in status["running"]]
        assert "secret" not in done.output
        stream.result()

    def test_models_list(self, url, ghost):
        done = pagefleet("models", "list")
        assert done.exit_code == 0
        lines = done.output.splitlines()
        (ghost_line,) = [line for line in lines if "ghost" in line]
        (null_line,) = [line for line in lines if line.startswith("│ null ")]
        assert "spirit" in ghost_line
        assert ghost_line.rstrip(" │┃").endswith("0")
        assert null_line.rstrip(" │┃").endswith("1")

    def test_models_alone_lists_them(self, url, ghost):
        assert pagefleet("models").output == pagefleet("models", "list").output

    def test_models_list_as_json(self, url, ghost):
        assert [card["name"] for card in json.loads(pagefleet("models", "list", "--json").output)] == [
            "ghost",
            "null",
        ]

    def test_models_remove(self, url, ghost, fleet):
        job = fleet.generate("Hello", model="ghost")
        refused = pagefleet("models", "remove", "ghost")
        assert refused.exit_code == 1
        assert refused.output == (
            "Error: ghost has 0 live workers and 1 open jobs; --force removes it anyway.\n"
        )
        fleet.cancel(job.job_id)
        assert pagefleet("models", "remove", "ghost").output == "removed ghost\n"
        assert [card.name for card in fleet.models()] == ["null"]
        gone = pagefleet("models", "remove", "ghost")
        assert (gone.exit_code, gone.output) == (1, "Error: There is no model 'ghost' to remove.\n")

    def test_a_model_with_a_live_worker_is_kept(self, url, fleet):
        done = pagefleet("models", "remove", "null")
        assert done.exit_code == 1
        assert "1 live workers" in done.output
        assert [card.name for card in fleet.models()] == ["null"]

    def test_force_removes_it_anyway(self, url, ghost, fleet):
        stream = fleet.generate("Hello", model="ghost")
        assert pagefleet("models", "remove", "ghost", "--force").output == "removed ghost\n"
        stream.leave_running()


class TestChat:
    def test_a_conversation(self, url):
        typed = "Hi\n/reset\nHi\n/exit\n"
        done = pagefleet("chat", "--seed", 7, "--max-tokens", 16, input=typed)
        assert done.exit_code == 0
        assert done.output.startswith("Chatting with null. /help lists the commands, /quit ends the chat.\n")
        assert done.output.count(SEED_7) == 2

    def test_its_commands(self, url, ghost):
        typed = "/help\n/nonsense\n/model\n/model spirit\n/model nobody\n/model null\nHi\n/quit\n"
        done = pagefleet("chat", "--model", "null", "--seed", 7, "--max-tokens", 4, input=typed)
        assert done.exit_code == 0
        for wanted in (
            "/model [NAME]",
            "Unknown command /nonsense",
            "* null\n",
            f"  {ghost}\n",
            f"{ghost} answers from now on.",
            "Error: model: 'nobody' is unknown",
            f"null answers from now on.\nyou> Hi\n{SEED_7[:4]}",
        ):
            assert wanted in done.output

    def test_an_error_ends_no_conversation(self, url):
        """A message that is too long is refused, and the next one is answered as if it had not been sent."""
        done = pagefleet("chat", "--seed", 7, "--max-tokens", 4, input="x" * 5000 + "\nHi\n/quit\n")
        alone = pagefleet("chat", "--seed", 7, "--max-tokens", 4, input="Hi\n/quit\n")
        assert "tokens do not fit the context of null" in done.output
        assert SEED_7[:4] in done.output
        assert SEED_7[:4] in alone.output
        assert done.exit_code == alone.exit_code == 0

    def test_the_end_of_the_input_ends_it(self, url):
        assert pagefleet("chat", input="").exit_code == 0

    def test_each_turn_knows_the_ones_before(self, null_stack, url):
        """The template's prompt grows by the question and the answer."""
        store = JobStore(FleetSettings(redis_url=null_stack.redis_url))
        before = set(store.redis.keys("pf:job:*"))
        pagefleet("chat", "--system", "Be brief.", "--seed", 7, "--max-tokens", 4, input="Hi\nMore\n/exit\n")
        jobs = [store.read(key.removeprefix("pf:job:")) for key in set(store.redis.keys("pf:job:*")) - before]
        store.close_connections()
        first, second = sorted((job.request().messages for job in jobs), key=len)
        assert [(m.role, m.content) for m in first] == [("system", "Be brief."), ("user", "Hi")]
        assert second[:2] == first
        assert [(m.role, m.content) for m in second[2:]] == [("assistant", SEED_7[:4]), ("user", "More")]

    def test_in_a_terminal_ctrl_c_stops_the_answer_and_the_talk_goes_on(self, url):
        terminal, inner = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "pagefleet.api.cli.main", "chat", "--max-tokens", "3000"],
            stdin=inner, stdout=inner, stderr=inner, start_new_session=True,
        )  # fmt: skip
        os.close(inner)
        try:
            self.read_until(terminal, "you\x1b[0m> ")
            os.write(terminal, b"Hi\n")
            # Its answer has begun: what comes after the echo.
            self.read_until(terminal, "Hi\r\n", and_more=True)
            process.send_signal(signal.SIGINT)
            # The whole answer would take 15 s.
            self.read_until(terminal, "you\x1b[0m> ", timeout_s=9)
            os.write(terminal, b"/exit\n")
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()
            os.close(terminal)

    def read_until(self, terminal, wanted, timeout_s=60.0, and_more=False):
        seen, deadline = "", time.monotonic() + timeout_s
        while wanted not in seen or (and_more and seen.endswith(wanted)):
            ready, _, _ = select.select([terminal], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"no {wanted!r} in {seen!r}"
            seen += os.read(terminal, 65536).decode(errors="replace")
