"""No prompt and no password in a worker's log, in Celery's events or in the status."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

from guarded_server import PASSWORDS, captured_events

from pagefleet.api import FleetClient
from pagefleet.api.broker.celery_app import make_celery
from pagefleet.api.config.settings import FleetSettings
from pagefleet.workers.local.local_stack import WorkerProcess
from pagefleet.workers.threads.polling import wait_until

PROMPT = "sentinel-prompt-7f3a"
NULL = ["--model", "null", "--backend", "null", "--null-step-time", "0.005", "--drain-seconds", "0"]


def test_neither_prompts_nor_passwords_are_told(guarded, tmp_path, monkeypatch):
    # Given a worker that logs everything, and everyone with a password in the URL.
    worker = WorkerProcess(
        guarded.url_of("worker"), [*NULL, "--log-level", "DEBUG"], log_file=tmp_path / "worker.log"
    ).start()
    try:
        worker.wait_ready(60)
        app = make_celery(FleetSettings(redis_url=guarded.url_of("monitor")))
        sender = make_celery(FleetSettings(redis_url=guarded.url_of("producer")))
        with captured_events(app) as events, FleetClient(redis_url=guarded.url_of("producer")) as fleet:
            assert wait_until(lambda: any(event["type"] == "worker-heartbeat" for event in events), 60)
            # When prompts come as jobs, as bare messages, right and wrong.
            fleet.generate(PROMPT, max_tokens=3).result()
            running = fleet.generate(PROMPT, max_tokens=2000)
            next(running)
            status = dataclasses.asdict(fleet.status())
            running.cancel()
            for fields in ({"max_tokens": 3}, {"temperature": PROMPT}, {"messages": PROMPT}, {PROMPT: 1}):
                with sender.connection_for_write() as connection:
                    sender.send_task(
                        "pagefleet.generate", kwargs={"model": "null", "prompt": PROMPT, **fields},
                        queue="pagefleet.null.interactive", connection=connection, ignore_result=True,
                    )  # fmt: skip
            assert wait_until(lambda: sum(e["type"] == "task-failed" for e in events) >= 3, 60)
        app.close()
        sender.close()
    finally:
        worker.terminate()
        worker.wait(60)
    shown = subprocess.run(
        [sys.executable, "-m", "pagefleet.api.cli.main", "status", "--json",
         "--redis-url", guarded.url_of("monitor")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert any(event["type"] == "task-sent" for event in events)
    told = {
        "log": "\n".join(worker.read_log()),
        "events": json.dumps(events, default=str),
        "status": json.dumps(status, default=str) + shown.stdout + shown.stderr,
    }
    # Then nobody is told what they were.
    assert "task-succeeded" in told["events"]
    for where, text in told.items():
        for secret in (PROMPT, *PASSWORDS.values()):
            assert secret not in text, where
