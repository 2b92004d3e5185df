"""``python -m ops.screenshots``: the pictures of Flower in docs/images, made with the demo model.

Names in them are made up, figures are not; nothing of the machine that made them is to be seen.
"""

from __future__ import annotations

import os
import sys
import tempfile
from itertools import cycle
from pathlib import Path
from typing import Final

from ops.flower_browser import FlowerBrowser, find_browser, flower_browser
from pagefleet.api import FleetClient, TokenStream
from pagefleet.api.settings import FlowerSettings
from pagefleet.workers.engine_loop import wait_until
from pagefleet.workers.flower_process import FlowerProcess
from pagefleet.workers.local_stack import LocalStack

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


def main() -> int:
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
        stack.companions.append(flower)
        with stack, FleetClient(redis_url=stack.redis_url) as fleet:
            user, _, password = flower.auth_file.read_text().strip().partition(":")
            with flower_browser(flower.url, user, password, browser=browser, width=_WIDTH) as window:
                _take(window, fleet)
    return 0


def _take(window: FlowerBrowser, fleet: FleetClient) -> None:
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


def _ask(fleet: FleetClient, first: int, num_jobs: int, **options: int) -> list[TokenStream]:
    asked = zip(range(num_jobs), cycle(_QUESTIONS), cycle(_TENANTS))
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
    sys.exit(main())
