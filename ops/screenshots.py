"""``python -m ops.screenshots``: the pictures of Flower and of the gateway's page in docs/images, made with
the demo model.

Names in them are made up, figures are not; nothing of the machine that made them is to be seen.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Final

from playwright.sync_api import Browser

from ops.flower_browser import FlowerBrowser, find_browser, flower_browser
from ops.gateway_browser import gateway_window, running_browser
from pagefleet.api import FleetClient, TokenStream
from pagefleet.api.config.settings import FlowerSettings, GatewaySettings
from pagefleet.workers.local.flower_process import FlowerProcess
from pagefleet.workers.local.gateway_process import GatewayProcess
from pagefleet.workers.local.local_stack import LocalStack
from pagefleet.workers.threads.polling import wait_until

FOLDER: Final = Path(__file__).parents[1] / "docs" / "images"
_SETTINGS: Final = {"PAGEFLEET_HOST_NAME": "node-1"}
_QUESTIONS: Final = (
    "Summarise this ticket in two sentences: the parcel came late, the box was open, and one cup was broken.",
    "Translate into French: Where is the nearest station?",
    "Write a short thank-you note to a customer who waited for three weeks.",
    "Why is the sky blue?",
)
_TENANTS: Final = ("acme", "globex", "initech")
_WIDTH: Final = 1680
_PAGE: Final = (1280, 720)


def main(wanted: Sequence[str] = ("flower", "gateway")) -> int:
    browser = find_browser()
    if browser is None:
        print("no Chromium is here (Debian: apt-get install chromium-headless-shell)", file=sys.stderr)  # noqa: T201
        return 1
    os.environ |= _SETTINGS
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        stack = LocalStack(home, ["--num-blocks", "1024"], drain_s=0.0)
        flower = FlowerProcess(stack.redis_url, FlowerSettings(home=home), 0)
        gateway = GatewayProcess(stack.redis_url, GatewaySettings(home=home), 0)
        stack.companions += [flower, gateway]
        with stack, FleetClient(redis_url=stack.redis_url) as fleet:
            if "flower" in wanted:
                user, _, password = flower.auth_file.read_text().strip().partition(":")
                with flower_browser(flower.url, user, password, browser=browser, width=_WIDTH) as window:
                    _take_flower(window, fleet)
            if "gateway" in wanted:
                with running_browser(browser) as chromium:
                    _take_gateway(chromium, gateway.wait_ready().url, fleet)
    return 0


def _take_gateway(chromium: Browser, url: str, fleet: FleetClient) -> None:
    """An answer as it streams, and the jobs of everybody in the dark."""
    with gateway_window(chromium, url, width=_PAGE[0], height=_PAGE[1]) as page:
        page.page.locator("#model-state", has_text="Ready").wait_for()
        page.set(Temperature="0", Max_tokens="256")
        page.send("Why is the sky blue?")
        page.wait_end(120)
        page.send("Say it in one sentence, for a child.")
        page.wait_text(70, 60)
        page.picture(FOLDER / "gateway-chat.png")
        page.page.keyboard.press("Escape")
        page.wait_end()
    for stream in _ask(fleet, 2001, 6, tenants=[None], max_tokens=24):
        stream.result()
    running = _ask(fleet, 2007, 4, tenants=[None], max_tokens=600)
    for stream in running:
        next(stream)
    with gateway_window(chromium, url, width=_PAGE[0], height=_PAGE[1], scheme="dark") as page:
        page.open_jobs()
        page.page.locator("#job-rows tr").first.wait_for()
        assert wait_until(lambda: len(page.job_rows()) > 7, 30, 0.2)
        page.picture(FOLDER / "gateway-jobs.png")
    for stream in running:
        stream.cancel()


def _take_flower(window: FlowerBrowser, fleet: FleetClient) -> None:
    """Ended, cancelled, running: of each some."""
    running = _ask(fleet, 1040, 16, max_tokens=1500)
    for stream in running:
        next(stream)
    short = _ask(fleet, 1056, 4, max_tokens=24)
    for stream in short:
        stream.result()
    running += _ask(fleet, 1060, 2, max_tokens=1500)
    worker = fleet.status().workers[0]
    window.open_task(running[15].job_id)
    window.picture(FOLDER / "flower-task.png", height=860)
    window.press("Terminate")
    running[15].result()
    assert wait_until(lambda: "REVOKED" in {row["state"] for row in window.open_tasks()}, 30, 0.5)
    window.picture(FOLDER / "flower-tasks.png", height=700)
    window.open_worker(f"{worker.model}@{worker.worker_id}")
    window.picture(FOLDER / "flower-worker.png", height=860)
    for stream in running:
        stream.cancel()


def _ask(
    fleet: FleetClient, first: int, num_jobs: int, *, tenants: Sequence[str | None] = _TENANTS, **options: int
) -> list[TokenStream]:
    asked = zip(range(num_jobs), cycle(_QUESTIONS), cycle(tenants))
    return [
        fleet.chat(
            [{"role": "user", "content": question}],
            job_id=f"order-{first + number}",
            tenant=tenant,
            seed=number,
            ignore_eos=True,
            **options,
        )
        for number, question, tenant in asked
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ("flower", "gateway")))
