"""``pagefleet flower``: the real dashboard over a real fleet, as the user that may only watch."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from flower_page import USER, FlowerPage, running_flower

from pagefleet.api import FleetClient
from pagefleet.api.celery_app import make_celery
from pagefleet.api.cli.main import main
from pagefleet.api.settings import FleetSettings
from pagefleet.workers.engine_loop import wait_until
from pagefleet.workers.local_stack import WorkerProcess

NULL = ["--model", "null", "--backend", "null", "--null-step-time", "0.005", "--drain-seconds", "0"]
PROMPT = "sentinel-prompt"


@pytest.fixture(scope="module")
def watched(guarded_for_all, tmp_path_factory):
    """A worker, and Flower that has found it."""
    guarded, folder = guarded_for_all, tmp_path_factory.mktemp("flower")
    worker = WorkerProcess(guarded.url_of("worker"), NULL, log_file=folder / "worker.log").start()
    try:
        status = worker.wait_ready(60)
        guarded.forget_denied()
        with running_flower(guarded.url_of("monitor"), folder) as page:
            # It hears of what happens after it has come.
            assert wait_until(lambda: "active_queues" in page.get("/api/workers?refresh=true"), 20, 0.2)
            yield SimpleNamespace(page=page, worker_id=status.worker_id, guarded=guarded)
    finally:
        worker.terminate()
        worker.wait(20)


def test_a_job_is_seen_with_its_state_and_worker_but_not_its_prompt(watched):
    page = watched.page
    with FleetClient(redis_url=watched.guarded.url_of("producer")) as fleet:
        stream = fleet.generate(PROMPT, max_tokens=4)
        stream.result()

    def seen():
        return json.loads(page.get("/api/tasks")).get(stream.job_id, {})

    assert wait_until(lambda: seen().get("state") == "SUCCESS", 20, 0.1)
    assert seen()["name"] == "pagefleet.generate"
    assert seen()["worker"] == f"null@{watched.worker_id}"
    assert seen()["runtime"] > 0
    for path in ("/api/tasks", f"/task/{stream.job_id}", "/tasks"):
        assert PROMPT not in page.get(path)


def test_the_prompt_of_a_plain_celery_service_is_not_seen(watched):
    page = watched.page
    app = make_celery(FleetSettings(redis_url=watched.guarded.url_of("producer")))
    arguments = {"model": "null", "prompt": PROMPT, "max_tokens": 2}
    job_id = app.send_task("pagefleet.generate", kwargs=arguments, queue="null.interactive").id
    assert wait_until(lambda: job_id in page.get("/api/tasks"), 20, 0.1)
    assert PROMPT not in page.get(f"/task/{job_id}")
    app.close()


def test_the_monitor_s_user_may_do_all_that_flower_does(watched):
    assert watched.page.status("/") == 200
    assert watched.page.status("/broker") == 200
    assert watched.guarded.denied() == []


def test_nobody_comes_in_without_the_password(watched):
    stranger = FlowerPage(watched.page.port, "admin:wrong")
    assert (stranger.status("/"), stranger.status("/api/tasks")) == (401, 401)
    # A container's health check has no password, and learns nothing.
    assert stranger.get("/healthcheck") == "OK"


def test_it_listens_to_others_only_with_a_password(tmp_path):
    def flower(*arguments):
        return CliRunner().invoke(main, ["flower", *map(str, arguments)])

    refused = flower("--address", "0.0.0.0")
    assert refused.exit_code == 1
    assert "does not listen on 0.0.0.0" in refused.output
    users = tmp_path / "users"
    for wrong in ("", "without-a-colon\n", f"{USER},b:c\n", ":nobody\n"):
        users.write_text(wrong)
        assert "it takes lines of user:password" in flower("--auth-file", users).output
    assert "Error: flower_auth_file" in flower("--auth-file", tmp_path / "none").output
