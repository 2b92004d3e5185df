"""`pagefleet top`: what it reads from a real server, what that looks like, and how it is left."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from io import StringIO

import pytest
from click.testing import CliRunner
from rich.console import Console

from pagefleet.api.cli.main import main
from pagefleet.api.contract import keys
from pagefleet.api.contract.messages import Fingerprint, ModelCard, WorkerStatus
from pagefleet.api.operate.top.fleet_view import FleetView, GoneWorker, QueueView, WorkerView, read_view
from pagefleet.api.operate.top.screen import SORTS, draw
from pagefleet.api.operate.top.watcher import Watcher
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.workers.local.redis_server import RedisServer
from pagefleet.workers.threads.polling import wait_until


def a_worker(name="w", *, age_s=0.2, model="m", **status):
    values = {"num_blocks": 100, "num_free_blocks": 75, "lease_s": 3.0, **status}
    return WorkerView(
        WorkerStatus(worker_id=name, model=model, host=name, pid=1, started_at=0.0, **values), age_s
    )


def a_view(*workers, gone=(), queues=(), letters=0):
    return FleetView(1e9, list(workers), list(gone), list(queues), letters)


def drawn(view, width=80, **options):
    console = Console(width=width, file=StringIO(), color_system=None)
    console.print(draw(view, width=width, **options))
    return console.file.getvalue().splitlines()


class TestTheScreen:
    @pytest.mark.parametrize("width", [80, 100, 160])
    def test_long_names_give_way_and_figures_do_not(self, width):
        worker = a_worker(
            "a-host-with-a-very-long-name-indeed", model="an-organisation/a-model-with-a-long-name-too",
            num_running=128, num_waiting=1024, generation_tok_s=12_345.6, ttft_p50_s=0.084, ttft_p95_s=1.23,
            is_draining=True,
        )  # fmt: skip
        queue = QueueView(
            "an-organisation/a-model-with-a-long-name-too", "interactive", 9999, 99999, 7300, 12
        )
        lines = drawn(a_view(worker, queues=[queue], letters=3), width, history=[1, 5, 9])
        assert max(map(len, lines)) <= width
        assert len(lines) == 7, "one line for each"
        text = "\n".join(lines)
        for figure in (
            "128",
            "1024",
            "25%",
            "12,346",
            "84ms",
            "1.2s",
            "200ms",
            "draining",
            "9999",
            "99999",
            "2h",
        ):
            assert figure in text, figure
        assert "3 dead letters" in text
        assert ("━" in text) == (width >= 100)

    def test_states(self):
        workers = [
            a_worker("busy", num_running=3),
            a_worker("idle"),
            a_worker("leaving", is_draining=True, num_running=1),
            a_worker("stuck", age_s=2.1, num_running=1),
        ]
        rows = [line.split() for line in drawn(a_view(*workers, gone=[GoneWorker("far-host-7-1a2b", 4.0)]))]
        states = {row[0]: row[2] for row in rows if row and "/" in row[0] and row[0] != "far-host/7"}
        assert states == {"busy/1": "busy", "idle/1": "idle", "leaving/1": "draining", "stuck/1": "late"}
        assert ["far-host/7", "gone", "4.0s"] in rows

    @pytest.mark.parametrize("sort", SORTS)
    def test_sorts(self, sort):
        workers = [
            a_worker("a", num_running=1, generation_tok_s=2.0, num_free_blocks=30),
            a_worker("b", num_running=2, generation_tok_s=3.0, num_free_blocks=90),
            a_worker("c", num_running=3, generation_tok_s=1.0, num_free_blocks=60),
        ]
        order = [line[0] for line in drawn(a_view(*workers), sort=sort) if "/1 " in line]
        assert "".join(order) == {"name": "abc", "running": "cba", "KV": "acb", "tok/s": "bac"}[sort]

    def test_an_empty_fleet(self):
        text = "\n".join(drawn(a_view()))
        assert "0 workers" in text
        assert "No worker holds a lease." in text
        assert "The fleet has no models yet." in text


class TestTheWatcher:
    def test_an_error_that_nobody_expected_is_shown_and_it_reads_on(self, store, monkeypatch):
        watcher = Watcher(store, 0.01)
        cards = store.cards
        monkeypatch.setattr(store, "cards", lambda: {}["no such key"])
        watcher.start()
        try:
            assert wait_until(lambda: watcher.problem is not None, 60)
            assert "KeyError" in watcher.problem
            monkeypatch.setattr(store, "cards", cards)
            assert wait_until(lambda: watcher.problem is None and watcher.view is not None, 60)
        finally:
            watcher.stop()
        assert not watcher.is_running


class TestWhatIsRead:
    def test_workers_with_their_beats_queues_with_their_age_and_who_is_gone(self, store):
        fingerprint = Fingerprint(weights="w", tokenizer="t", dtype="d", backend="b", version="v")
        store.publish_card(
            ModelCard(name="m", max_model_len=9, vocab_size=9, max_queue_depth=9, fingerprint=fingerprint)
        )
        store.beat(a_worker("w1", job_ids=["held"]).status, 60)
        store.beat(a_worker("host-7-abcd").status, 60)
        store.delete_lease("host-7-abcd")
        now_ms = store.redis.time()[0] * 1000
        store.redis.zadd(
            keys.open_jobs("pagefleet.m.batch"), {"held": now_ms - 90_000, "waits": now_ms - 30_000}
        )
        store.redis.rpush("pagefleet.m.batch", "a message")
        view = read_view(store)
        (worker,) = view.workers
        assert worker.status.worker_id == "w1"
        assert 0 <= worker.beat_age_s < 5
        assert [gone.worker_id for gone in view.gone] == ["host-7-abcd"]
        interactive, batch = view.queues
        assert (interactive.num_queued, interactive.oldest_s) == (0, 0)
        assert (batch.lane, batch.num_queued, batch.num_open, batch.num_workers) == ("batch", 1, 2, 1)
        assert 29 < batch.oldest_s < 60

    def test_a_real_worker_says_what_it_did_lately(self, null_stack, fleet):
        jobs = [fleet.generate("Hello", max_tokens=200) for _ in range(4)]
        for job in jobs:
            next(job)
        store = JobStore(fleet.settings)

        def told():
            (worker,) = read_view(store).workers
            status = worker.status
            return status.generation_tok_s > 0 and status.ttft_p50_s and status.num_running == 4

        assert wait_until(told, 60)
        (worker,) = read_view(store).workers
        assert 0 < worker.status.ttft_p50_s <= worker.status.ttft_p95_s
        assert worker.status.lease_s == 3.0
        assert worker.status.fingerprint == fleet.models()[0].fingerprint
        assert not worker.is_late
        for job in jobs:
            job.cancel()
        store.close_connections()

    def test_once_prints_one_frame_without_colours(self, null_stack):
        done = CliRunner().invoke(main, ["top", "--redis-url", null_stack.redis_url])
        assert done.exit_code == 0
        for word in ("1 worker ", "tok/s", "TTFT p50", "null", "interactive", "batch"):
            assert word in done.output
        assert "\x1b" not in done.output

    def test_once_without_a_server_is_an_error(self):
        done = CliRunner().invoke(main, ["top", "--once", "--redis-url", "redis://127.0.0.1:1/0"])
        assert done.exit_code == 1
        assert done.output.startswith("Error: No answer from Redis")


class Terminal:
    """A real one, 80 by 24, with `pagefleet top` in it."""

    def __init__(self, url):
        self._master, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pagefleet.api.cli.main", "top", "--interval", "0.1", "--redis-url", url],
            stdin=inner, stdout=inner, stderr=inner, start_new_session=True,
            # Tests that run in a shell's background are deaf to it, and so would this be.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            env=environment | {"TERM": "xterm-256color"},
        )  # fmt: skip
        self.before = termios.tcgetattr(inner)
        self.inner = inner

    def press(self, key):
        os.write(self._master, key.encode())

    def wait_for(self, wanted, timeout_s=60.0):
        seen, deadline = "", time.monotonic() + timeout_s
        while wanted not in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen):
            ready, _, _ = select.select([self._master], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"no {wanted!r} in {seen[-2000:]!r}"
            seen += os.read(self._master, 65536).decode(errors="replace")

    def exit_status(self, timeout_s=60.0):
        """Reads on meanwhile, as a terminal does: what nobody reads, nobody can write."""
        deadline = time.monotonic() + timeout_s
        while self.process.poll() is None:
            assert time.monotonic() < deadline, "it does not leave"
            if select.select([self._master], [], [], 0.05)[0]:
                os.read(self._master, 65536)
        return self.process.returncode

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self._master)
        os.close(self.inner)


class TestLive:
    @pytest.fixture
    def own_server(self, server_binary, tmp_path):
        with RedisServer(tmp_path / "own") as server:
            yield server

    @pytest.fixture
    def terminal(self, own_server):
        terminal = Terminal(own_server.url)
        yield terminal
        terminal.close()

    def test_keys_and_a_server_that_goes_and_comes_back(self, own_server, terminal):
        terminal.wait_for("No worker holds a lease.")
        terminal.press("s")
        terminal.wait_for("sort by: running")
        own_server.kill()
        terminal.wait_for("No answer from Redis")
        own_server.start()
        terminal.wait_for("─\r\n0 workers")
        terminal.press("q")
        assert terminal.exit_status() == 0
        assert termios.tcgetattr(terminal.inner) == terminal.before

    def test_ctrl_c_leaves_too(self, terminal):
        terminal.wait_for("sort by")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.exit_status() == 0
        assert termios.tcgetattr(terminal.inner) == terminal.before
