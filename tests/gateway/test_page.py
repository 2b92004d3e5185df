"""GET /: the page in a real browser, over a real fleet."""

from __future__ import annotations

import signal
import time

import httpx
import pytest

from ops.flower_browser import find_browser
from ops.gateway_browser import gateway_window, running_browser
from pagefleet.api.config.settings import FleetSettings, GatewaySettings
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.engine.execution.null_executor import null_token
from pagefleet.workers.local.gateway_process import GatewayProcess
from pagefleet.workers.local.local_stack import WorkerProcess
from pagefleet.workers.threads.polling import wait_until

MARKUP = "<img/src=x/onerror=document.title='owned'>"
LONG = "900"


def expected(seed, count):
    return "".join(chr(null_token(seed, 0, position)) for position in range(count))


def test_its_files(http):
    reply = http.get("/")
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert http.get("/", headers={"if-none-match": reply.headers["etag"]}).status_code == 304
    for requested in ("bytes=0-3", "bytes=99999999-", "wrong"):
        whole = http.get("/", headers={"range": requested})
        assert (whole.status_code, whole.content) == (200, reply.content)
    for name in ("main.js", "page.css", "icon.svg"):
        found = http.get(f"/page/{name}")
        assert found.status_code == 200
        assert found.headers["content-security-policy"] == policy
        # Nothing is fetched from anywhere else.
        assert "//" not in found.text.replace("http://www.w3.org/2000/svg", "").replace("// ", "")
    for name in ("index.html", "page.py", "..%2fpage.py", "%2e%2e/page.py", "", "main"):
        assert http.get(f"/page/{name}").status_code == 404


@pytest.fixture(scope="module")
def chromium(give_up):
    program = find_browser()
    if program is None:
        give_up("Chromium is not installed: run make browser, or install the package chromium", "browser")
    with running_browser(program) as found:
        yield found


@pytest.fixture
def window(gateway, chromium):
    with gateway_window(chromium, gateway.url) as found:
        yield found
        assert found.faults == []


def job_of(http, window, index=-1):
    return http.get(f"/v1/jobs/{window.kept['turns'][index]['answer']['job']}").json()


def text_of(job):
    return job["result"]["choices"][0]["message"]["content"]


def test_an_answer_streams_with_its_figures_and_is_part_of_the_conversation(window, http):
    window.set(Seed="7", Max_tokens="200", System_prompt="Be brief.")
    window.send("Hello")
    window.wait_text(20)
    assert len(window.text) < 200, "it comes bit by bit"
    assert expected(7, 200).startswith(window.text)
    window.wait_end()
    assert window.text == expected(7, 200) == text_of(job_of(http, window))
    figures = window.answer.locator(".figures").text_content()
    for part in ("200 tokens", "tok/s", "first token", "cut at max tokens"):
        assert part in figures
    # All that was said is asked with the next message.
    num_prompt_tokens = job_of(http, window)["usage"]["prompt_tokens"]
    window.set(Max_tokens="3")
    window.send("And?")
    window.wait_end()
    assert job_of(http, window)["usage"]["prompt_tokens"] > num_prompt_tokens + 200
    window.page.get_by_role("button", name="New chat").click()
    assert window.page.locator(".turn").count() == 0


@pytest.mark.parametrize("by", ["button", "key"])
def test_stop_ends_the_job(window, http, by):
    window.set(Seed="7", Max_tokens="4000")
    window.send("Hello")
    window.wait_text(20)
    if by == "button":
        window.page.get_by_role("button", name="Stop").click()
    else:
        window.page.keyboard.press("Escape")
    window.wait_end(10)
    job = job_of(http, window)
    assert job["status"] == "cancelled"
    assert window.text == text_of(job) == expected(7, job["usage"]["completion_tokens"])
    assert "stopped" in window.answer.locator(".figures").text_content()


def test_a_reload_in_mid_stream_goes_on_exactly(window, http):
    # Long enough that two loads of the page fit into it on a busy machine.
    num_tokens = 1500
    window.set(Seed="7", Max_tokens=str(num_tokens))
    window.send("Hello")
    for count in (50, 300):
        window.wait_text(count)
        before = window.text
        window.page.reload()
        window.wait_text(len(before))
        assert window.text.startswith(before)
        assert window.answer.get_attribute("aria-busy") == "true"
    window.wait_end()
    job = job_of(http, window)
    assert (job["status"], job["attempts"]) == ("completed", 1)
    assert window.text == text_of(job) == expected(7, num_tokens)
    assert f"{num_tokens} tokens" in window.answer.locator(".figures").text_content()
    # Another one changes nothing more.
    window.page.reload()
    assert window.text == expected(7, num_tokens)


def test_a_gateway_that_dies_and_comes_back_is_noticed_and_no_more(null_stack, chromium, tmp_path):
    def start(port=0):
        settings = GatewaySettings(gateway_port=port) if port else GatewaySettings()
        gateway = GatewayProcess(null_stack.redis_url, settings, port, log_file=tmp_path / "gateway.log")
        return gateway.start().wait_ready()

    gateway = start()
    with gateway_window(chromium, gateway.url) as window:
        window.set(Seed="7", Max_tokens=LONG)
        window.send("Hello")
        window.wait_text(50)
        gateway.send_signal(signal.SIGKILL)
        gateway.wait(60)
        window.wait_notice("Connection lost")
        gateway = start(gateway.port)
        window.wait_end()
        assert window.text == expected(7, int(LONG))
        assert window.notice == ""
    gateway.terminate()
    gateway.wait(60)


def test_it_says_when_its_gateway_is_down(null_stack, chromium, tmp_path):
    """With no answer under way, and until it is back."""
    gateway = GatewayProcess(null_stack.redis_url, GatewaySettings(), 0, log_file=tmp_path / "gateway.log")
    gateway.start().wait_ready()
    with gateway_window(chromium, gateway.url) as window:
        window.page.locator("#model-state", has_text="Ready").wait_for()
        gateway.send_signal(signal.SIGKILL)
        gateway.wait(60)
        window.wait_notice(f"The gateway at 127.0.0.1:{gateway.port} does not answer.")
        gateway.start().wait_ready()
        window.page.locator("#notice").wait_for(state="hidden", timeout=60_000)
    gateway.terminate()
    gateway.wait(60)


MARKDOWN = """\
# Title
Some *soft*, **loud** and `code`; a_name_stays, 2 * 3 * 4 too.
A new line, a [link](https://example.com/a_b), [none](javascript:alert(1)) and https://example.com/x.

- one
- two
  1. inner
  2. more

  after a gap
- three

> quoted **text**

| a | b |
|---|---|
| 1 | `x` |

```python
if a < b:  # <b>not bold</b>
    print("**")
```
---
<script>alert(1)</script> \\*plain\\*"""

SHOWN = """\
<h3>Title</h3>\
<p>Some <em>soft</em>, <strong>loud</strong> and <code>code</code>; a_name_stays, 2 * 3 * 4 too.
A new line, a <a href="https://example.com/a_b">link</a>, [none](javascript:alert(1)) and \
<a href="https://example.com/x">https://example.com/x</a>.</p>\
<ul><li><span>one</span></li><li><span>two</span><ol start="1"><li><span>inner</span></li>\
<li><span>more</span></li></ol><p>after a gap</p></li><li><span>three</span></li></ul>\
<blockquote><span>quoted <strong>text</strong></span></blockquote>\
<div class="wide"><table><thead><tr><th>a</th><th>b</th></tr></thead>\
<tbody><tr><td>1</td><td><code>x</code></td></tr></tbody></table></div>\
<pre class="code" tabindex="0" data-language="python"><code>if a &lt; b:  # &lt;b&gt;not bold&lt;/b&gt;
    print("**")</code></pre><hr><p>&lt;script&gt;alert(1)&lt;/script&gt; *plain*</p>"""

RENDER = """async ([text, cuts]) => {
  const { showMarkdown } = await import('./page/markdown.js')
  const whole = document.createElement('div'), grown = document.createElement('div')
  showMarkdown(whole, text)
  for (const cut of cuts) showMarkdown(grown, text.slice(0, cut))
  showMarkdown(grown, text)
  return [whole.innerHTML, grown.innerHTML]
}"""


def test_an_answer_is_shown_as_markdown(window):
    whole, grown = window.page.evaluate(RENDER, [MARKDOWN, list(range(len(MARKDOWN)))])
    target = ' target="_blank" rel="noopener noreferrer nofollow"'
    assert whole.replace(target, "") == SHOWN
    assert whole.count(target) == 2
    assert grown == whole, "as it streams in, character by character"


@pytest.mark.parametrize(
    "piece", ["*", "`", "[", "](", "**a ", "_a", "> ", "- ", "|", "~~", "<", "a_ *b", "``a`"]
)
def test_no_text_takes_longer_than_its_length(window, piece):
    """Twenty thousand marks without an end, on one line and as lines of their own."""
    for text in (piece * 20_000, f"{piece}\n" * 2_000):
        begun_at = time.monotonic()
        window.page.evaluate(RENDER, [text, []])
        assert time.monotonic() - begun_at < 6


def test_without_a_worker_it_says_so_and_waits(window, http, ghost):
    window.page.reload()
    window.set(Model=ghost)
    assert "No worker right now" in window.page.locator("#model-state").text_content()
    window.send("Hello")
    window.wait_notice(f"No worker serves {ghost} right now")
    window.page.keyboard.press("Escape")
    window.wait_end(10)
    assert job_of(http, window)["status"] == "cancelled"
    assert window.notice == ""


def test_a_refusal_is_told_and_can_be_tried_again(window, http):
    window.set(Temperature="-1")
    window.send("Hello")
    window.answer.locator(".error", has_text="temperature").wait_for()
    window.set(Temperature="", Max_tokens="5", Seed="7")
    window.page.get_by_role("button", name="Try again").click()
    window.wait_end()
    assert window.text == expected(7, 5)
    assert window.page.locator(".turn").count() == 2


def test_a_key_is_asked_for_and_kept_in_the_tab_only(guarded_gateway, key_file, chromium):
    token, _ = key_file.add(tenant="acme-page", requests_per_minute=1)
    with gateway_window(chromium, guarded_gateway.url) as window:
        window.wait_notice("needs an API key")
        window.set(API_key="pf-00000000-x")
        window.wait_notice("does not know this API key")
        headers = {"authorization": f"Bearer {token}"}
        models = f"{guarded_gateway.url}/v1/models"
        assert wait_until(lambda: httpx.get(models, headers=headers).status_code == 200, 60, 0.1)
        window.set(API_key=token, Max_tokens="5")
        window.page.locator("#model-state", has_text="Ready").wait_for()
        window.send("Hello")
        window.wait_end()
        assert len(window.text) == 5
        window.send("And again")
        window.answer.locator(
            ".error", has_text="The limit of this API key is reached. Try again in"
        ).wait_for()
        window.page.reload()
        window.page.locator("#model-state", has_text="Ready").wait_for()
        assert window.page.evaluate("localStorage.length + document.cookie.length") == 0
        window.open_jobs()
        window.page.locator("#job-rows tr").wait_for()
        assert len(window.job_rows()) == 1


def test_text_is_never_markup(gateway, chromium, http, fleet):
    """What a user typed, what a model wrote, and what a service called its job."""
    body = {"model": "null", "messages": [{"role": "user", "content": "x"}], "background": True}
    written = http.post("/v1/chat/completions", json={**body, "guided_choice": [MARKUP]}).json()["id"]
    fleet.generate("x", max_tokens=1, job_id=MARKUP).result()
    answer = {"job": written, "last": "0u", "text": "", "tokens": 0, "promptTokens": None, "askedAt": 0}
    turns = [{"role": "user", "text": MARKUP}, {"role": "assistant", "model": MARKUP, "answer": answer}]
    with gateway_window(chromium, gateway.url, kept={"turns": turns}) as window:
        window.wait_end()
        assert window.text == MARKUP
        assert window.page.locator(".turn.user .text").text_content() == MARKUP
        window.open_jobs()
        window.page.locator("#job-rows tr").first.wait_for()
        assert MARKUP in {row["Job"] for row in window.job_rows()}
        assert window.page.locator("main img").count() == 0
        assert window.page.title() == "pagefleet"
        assert window.faults == []


def test_the_jobs_of_a_tenant_live(window, http, fleet):
    running = fleet.generate("x", model="null", max_tokens=4000)
    next(running)
    done = fleet.generate("x", model="null", max_tokens=5)
    done.result()
    window.open_jobs()

    def rows():
        return {row["Job"]: row for row in window.job_rows()}

    assert wait_until(lambda: {done.job_id, running.job_id} <= rows().keys(), 60, 0.1)
    row = rows()[done.job_id]
    assert (row["State"], row["Model"], row["Answer"], row[""]) == ("complete", "null", "5", "")
    assert rows()[running.job_id]["State"] == "running"
    window.page.get_by_role("button", name=f"Stop {running.job_id}").click()
    assert running.result().finish_reason == "cancelled"
    assert wait_until(lambda: rows()[running.job_id]["State"] == "stopped", 60, 0.1)
    # The view is kept over a reload, and older jobs can be had.
    window.page.reload()
    assert wait_until(lambda: done.job_id in rows(), 60, 0.1)


def test_it_fits_a_phone(gateway, chromium):
    with gateway_window(chromium, gateway.url, width=360, height=640) as window:
        window.page.get_by_role("button", name="Settings").click()
        window.set(Max_tokens="30")
        window.page.get_by_role("button", name="Settings").click()
        window.send("Hello")
        window.wait_end()
        window.open_jobs()
        window.page.locator("#job-rows tr").first.wait_for()
        for width in ("document.documentElement.scrollWidth", "document.getElementById('jobs').scrollWidth"):
            assert window.page.evaluate(width) <= 360


@pytest.fixture
def thinker(null_stack, tmp_path):
    """A model that thinks aloud, and says what it is asked to."""
    worker = WorkerProcess(
        null_stack.redis_url,
        ["--model", "thinker", "--backend", "null", "--null-recites", "--speculate", "0",
         "--reasoning-parser", "think"],
        log_file=tmp_path / "thinker.log",
    )  # fmt: skip
    worker.start()
    try:
        yield worker.wait_ready(60)
    finally:
        worker.terminate()
        worker.wait(60)
        store = JobStore(FleetSettings(redis_url=null_stack.redis_url))
        store.remove_card("thinker")
        store.close_connections()


def test_what_a_model_thinks_stands_apart(thinker, window, http):
    window.page.reload()
    window.page.get_by_label("Model").select_option("thinker")
    window.send("<recite><think>First <b>this</b>.</think>Then that.</recite>")
    window.wait_end()
    assert window.text == "Then that."
    thoughts = window.answer.locator(".thinking .thought")
    assert thoughts.text_content() == "First <b>this</b>."
    window.page.reload()
    assert thoughts.text_content() == "First <b>this</b>."
