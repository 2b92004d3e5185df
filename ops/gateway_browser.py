"""The gateway's page in a real browser, for tests and pictures: Chromium, driven by Playwright."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from playwright.sync_api import Browser, Locator, Page, sync_playwright


class GatewayBrowser:
    """One window of the page.

    Args:
        url: of the gateway.
    """

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.faults: list[str] = []
        """What the page's own code, or its policy, complained of."""
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on(
            "console", lambda line: self.faults.append(line.text) if "Security Policy" in line.text else None
        )

    def open(self) -> None:
        self.page.goto(self.url)

    def send(self, text: str) -> None:
        self.page.get_by_label("Message").fill(text)
        self.page.keyboard.press("Enter")

    def set(self, **fields: str) -> None:
        """Settings by their labels, blanks written as underscores."""
        for name, value in fields.items():
            field = self.page.get_by_label(name.replace("_", " "), exact=True)
            if field.evaluate("field => field.tagName") == "SELECT":
                field.select_option(value)
            else:
                field.fill(value)
                field.press("Tab")

    @property
    def answer(self) -> Locator:
        """The last one."""
        return self.page.locator(".turn.assistant").last

    @property
    def text(self) -> str:
        """What the last answer's Markdown was rendered from: every character that came."""
        source: str = self.answer.locator(".text").evaluate("place => place.source")
        return source

    @property
    def notice(self) -> str:
        return self.page.locator("#notice").text_content() or ""

    @property
    def kept(self) -> dict[str, Any]:
        """What the tab has in its storage."""
        found: dict[str, Any] = json.loads(self.page.evaluate("sessionStorage.getItem('pagefleet')"))
        return found

    def wait_text(self, num_characters: int, timeout_s: float = 30) -> None:
        """Wait until the last answer has this many characters."""
        self.page.wait_for_function(
            "count => [...document.querySelectorAll('.assistant .text')].at(-1)?.source.length >= count",
            arg=num_characters,
            timeout=timeout_s * 1000,
        )

    def wait_end(self, timeout_s: float = 60) -> None:
        self.page.locator(".turn.assistant[aria-busy=false]").last.wait_for(timeout=timeout_s * 1000)
        self.page.get_by_role("button", name="Send").wait_for(timeout=timeout_s * 1000)

    def wait_notice(self, part: str, timeout_s: float = 30) -> None:
        self.page.locator("#notice", has_text=part).wait_for(timeout=timeout_s * 1000)

    def open_jobs(self) -> None:
        self.page.get_by_role("tab", name="Jobs").click()

    def job_rows(self) -> list[dict[str, str]]:
        """Return the rows of the table, each as a dict by column name."""
        rows: list[dict[str, str]] = self.page.locator("#job-rows tr").evaluate_all(
            "rows => rows.map(row => Object.fromEntries("
            "[...row.cells].map(cell => [cell.dataset.name, cell.textContent])))"
        )
        return rows

    def picture(self, file: Path) -> None:
        """The window as it is, in PNG."""
        self.page.screenshot(path=file)


@contextlib.contextmanager
def running_browser(program: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program)
        try:
            yield chromium
        finally:
            chromium.close()


@contextlib.contextmanager
def gateway_window(
    chromium: Browser,
    url: str,
    *,
    width: int = 1280,
    height: int = 800,
    scheme: Literal["light", "dark"] = "light",
    kept: Mapping[str, Any] | None = None,
) -> Iterator[GatewayBrowser]:
    """Opens a window that knows nothing of any other.

    Args:
        width: in CSS pixels; so is the height.
        kept: what the tab has in its storage already.
    """
    context = chromium.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
    )
    try:
        page = context.new_page()
        if kept is not None:
            text = json.dumps(json.dumps(kept))
            page.add_init_script(f"sessionStorage.pagefleet ??= {text}")
        window = GatewayBrowser(page, url)
        window.open()
        yield window
    finally:
        context.close()
