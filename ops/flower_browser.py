"""Flower's pages in a real browser, for tests and pictures: Chromium, driven by Playwright."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from playwright.sync_api import Page, sync_playwright

_NAMES: Final = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


def find_browser() -> str | None:
    """An installed Chromium: Playwright would fetch one of its own, which is larger and no package."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


class FlowerBrowser:
    """One window, signed in.

    Args:
        url: of Flower, without a path.
    """

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self._url = url

    def open_tasks(self, *, num_rows: int = 50, search: str = "") -> list[dict[str, str]]:
        """The table of jobs, newest first, each row by its column's name."""
        self.page.goto(f"{self._url}/tasks")
        if search:
            self._reload_table(lambda: self.page.get_by_placeholder("state:FAILURE").fill(search))
        self._reload_table(
            lambda: self.page.locator("#tasks-table_length select").select_option(str(num_rows))
        )
        return self.rows()

    def sort(self, column: str) -> list[dict[str, str]]:
        header = self.page.locator(".dataTables_scrollHead th", has_text=column)
        self._reload_table(header.click)
        return self.rows()

    def rows(self) -> list[dict[str, str]]:
        """Return the rows of the table as the page shows it."""
        table: list[dict[str, str]] = self.page.evaluate(
            """() => {
                const head = [...document.querySelectorAll('.dataTables_scrollHead th')]
                const names = head.map(cell => cell.dataset.column)
                return [...document.querySelectorAll('#tasks-table tbody tr[id]')].map(row =>
                    Object.fromEntries([...row.cells].map((cell, i) => [names[i], cell.innerText.trim()])))
            }"""
        )
        return table

    def open_task(self, task_id: str) -> dict[str, str]:
        """Open the page of a task and return its values by their labels."""
        self.page.goto(f"{self._url}/task/{quote(task_id)}")
        rows: list[list[str]] = self.page.locator(".detail-row").evaluate_all(
            "rows => rows.map(row => [...row.children].map(cell => cell.innerText.trim()))"
        )
        return {name: value for name, value, *_ in rows}

    def press(self, button: str) -> str:
        """Terminate or Revoke, on a task's page; what Flower answers."""
        self.page.get_by_role("button", name=button, exact=True).click()
        toast = self.page.locator(".toast-body")
        toast.wait_for()
        return toast.inner_text()

    def open_worker(self, name: str) -> dict[str, str]:
        """The lines of its pool page."""
        self.page.goto(f"{self._url}/worker/{quote(name)}")
        rows: list[list[str]] = self.page.locator("#tab-pool tr").evaluate_all(
            "rows => rows.map(row => [...row.cells].map(cell => cell.innerText.trim()))"
        )
        return dict(rows)

    def open_workers(self) -> None:
        self.page.goto(f"{self._url}/workers")
        self.page.locator("#workers-table .worker-name-link").first.wait_for()

    def picture(self, file: Path, height: int | None = None) -> None:
        """The window as it is, in PNG."""
        clip: Any = None
        size = self.page.viewport_size
        if height is not None and size is not None:
            clip = {"x": 0, "y": 0, "width": size["width"], "height": height}
        self.page.screenshot(path=file, clip=clip)

    def _reload_table(self, act: Any) -> None:
        with self.page.expect_response("**/tasks/datatable"):
            act()
        self.page.locator("#tasks-table_processing").wait_for(state="hidden")


@contextlib.contextmanager
def flower_browser(
    url: str, user: str, password: str, *, browser: str, width: int = 1600, height: int = 1000
) -> Iterator[FlowerBrowser]:
    """Opens the browser and signs in.

    Args:
        browser: the program.
        width: of the window, in CSS pixels; so is the height.
    """
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser)
        try:
            context = chromium.new_context(
                http_credentials={"username": user, "password": password},
                viewport={"width": width, "height": height},
                color_scheme="light",
            )
            yield FlowerBrowser(context.new_page(), url)
        finally:
            chromium.close()
