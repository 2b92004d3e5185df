"""``pagefleet flower``: the real dashboard over a real fleet, as the user that may only watch."""

from __future__ import annotations

import json
import urllib.error
from ast import literal_eval

import pytest
from celery import Celery
from click.testing import CliRunner
from flower_page import USER, FlowerPage
from watched_fleet import STEP_S

from pagefleet.api.cli.main import main
from pagefleet.workers.threads.polling import wait_until

PROMPT = "sentinel-prompt"


def test_a_job_is_seen_with_its_state_and_worker_but_not_its_prompt(watched, producer):
    page = watched.page
    stream = producer.generate(PROMPT, max_tokens=4, job_id="order-17")
    stream.result()

    def seen():
        return json.loads(page.get("/api/tasks")).get(stream.job_id, {})

    assert wait_until(lambda: seen().get("state") == "SUCCESS", 60, 0.1)
    job = seen()
    assert job["name"] == "pagefleet.generate"
    assert job["worker"] == f"null@{watched.worker_id}"
    # Four steps from its start on, the wait before it not counted.
    assert 3 * STEP_S < job["runtime"] < job["succeeded"] - job["received"] + 0.1
    assert (job["attempts"], job["retries"]) == (1, 0)
    assert 0 <= float(job["queue_time"].split()[0]) < 20
    assert literal_eval(job["kwargs"]) == {
        "prompt": f"<{len(PROMPT)} chars>",
        "max_tokens": 4,
        "model": "null",
    }
    assert job["result"] == "finish_reason=length num_tokens=4 attempts=1"
    for path in ("/api/tasks", f"/task/{stream.job_id}", "/tasks"):
        assert PROMPT not in page.get(path)


def test_the_prompt_of_a_plain_celery_service_is_not_seen(watched):
    """Its own events may repeat its arguments, for its own monitors."""
    page = watched.page
    app = Celery("their-service", broker=watched.guarded.url_of("producer"))
    app.conf.task_send_sent_event = True
    arguments = {"model": "null", "prompt": PROMPT, "max_tokens": 2}
    job_id = app.send_task("pagefleet.generate", kwargs=arguments, queue="pagefleet.null.interactive").id
    assert wait_until(lambda: json.loads(page.get("/api/tasks")).get(job_id, {}).get("sent"), 60, 0.1)
    assert PROMPT not in page.get("/api/tasks")
    assert PROMPT not in page.get(f"/task/{job_id}")
    app.close()


def test_its_metrics_need_no_password_and_hold_no_prompt(watched, producer):
    """As a worker's own; its buckets reach beyond a web request's."""
    producer.generate(PROMPT, max_tokens=2).result()
    stranger = FlowerPage(watched.page.port, "nobody:nothing")
    labels = f'task="pagefleet.generate",worker="null@{watched.worker_id}"'

    def count():
        (line,) = [
            line for line in stranger.get("/metrics").splitlines() if f"seconds_count{{{labels}" in line
        ]
        return float(line.split()[-1])

    assert wait_until(lambda: count() >= 2, 60, 0.1)
    text = stranger.get("/metrics")
    assert f'flower_task_runtime_seconds_bucket{{le="160.0",{labels}}}' in text
    online = f'flower_worker_online{{worker="null@{watched.worker_id}"}} 1.0'
    assert wait_until(lambda: online in stranger.get("/metrics"), 60, 0.1)
    assert PROMPT not in text


def test_the_monitor_s_user_may_do_all_that_flower_does(watched):
    assert watched.page.status("/") == 200
    assert watched.page.status("/broker") == 200
    assert watched.guarded.denied() == []


def test_nobody_comes_in_without_the_password(watched):
    stranger = FlowerPage(watched.page.port, "admin:wrong")
    assert (stranger.status("/"), stranger.status("/api/tasks")) == (401, 401)
    # A browser that knows the password for one folder sends it to the buttons' addresses if it is asked.
    with pytest.raises(urllib.error.HTTPError) as refused:
        stranger.get("/api/task/info/some")
    assert refused.value.headers["WWW-Authenticate"].startswith("Basic")
    refused.value.close()
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
        assert "must contain one user:password per line" in flower("--auth-file", users).output
    assert "Error: flower_auth_file" in flower("--auth-file", tmp_path / "none").output
