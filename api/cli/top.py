"""``pagefleet top``: watch a fleet live."""

from __future__ import annotations

from typing import Final

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from pagefleet.api.cli.console import make_console
from pagefleet.api.cli.options import redis_option
from pagefleet.api.config.settings import FleetSettings
from pagefleet.api.operate.top.fleet_view import read_view
from pagefleet.api.operate.top.keyboard import Keyboard
from pagefleet.api.operate.top.screen import SORTS, draw, footer, header
from pagefleet.api.operate.top.watcher import Watcher
from pagefleet.api.protocol.connection import safe_url
from pagefleet.api.protocol.job_store import JobStore

_KEY_WAIT_S: Final = 0.2
_QUIT_KEYS: Final = ("q", "Q", "\x04")


@click.command()
@click.option(
    "--interval",
    default=1.0,
    show_default=True,
    type=click.FloatRange(min=0.1),
    help="Time between two updates, in seconds.",
)
@click.option(
    "--sort",
    type=click.Choice(list(SORTS)),
    default="name",
    show_default=True,
    help="Column to sort workers by.",
)
@click.option(
    "--once", is_flag=True, help="Print one frame and exit; the default if the output is not a terminal."
)
@redis_option
def top(redis_url: str | None, interval: float, sort: str, once: bool) -> None:
    """Watch workers and queues live.

    tok/s covers the last 5 seconds of a worker, TTFT (time to first token) the last 5 minutes. The rights of
    a monitor's Redis user are sufficient. Keys: q quits, s sorts by the next column.

    \b
    Examples:
      pagefleet top
      pagefleet top --once --sort tok/s
    """
    store = JobStore(FleetSettings.from_files(redis_url=redis_url))
    console = make_console(piped_width=120)
    if not once and console.is_terminal:
        _watch(store, console, interval, sort)
        return
    try:
        _print_once(store, console, sort)
    finally:
        store.close_connections()


def _print_once(store: JobStore, console: Console, sort: str) -> None:
    view = read_view(store)
    console.print(header(safe_url(store.settings.url), view.read_at))
    console.print(draw(view, width=console.width, sort=sort))


def _watch(store: JobStore, console: Console, interval_s: float, sort: str) -> None:
    watcher = Watcher(store, interval_s)
    watcher.start()
    try:
        with Keyboard() as keyboard, Live(console=console, screen=True, auto_refresh=False) as live:
            drawn: object = None
            while (key := keyboard.key(min(_KEY_WAIT_S, interval_s))) not in _QUIT_KEYS:
                if key == "s":
                    names = list(SORTS)
                    sort = names[(names.index(sort) + 1) % len(names)]
                # Redraw only on changes: the terminal may be on a slow connection.
                if drawn != (drawn := (watcher.num_reads, sort, console.size)):
                    live.update(_frame(watcher, safe_url(store.settings.url), console, sort), refresh=True)
    except KeyboardInterrupt:
        pass  # quits like the key q
    finally:
        watcher.stop()
        # A thread that hangs in a connection ends with the process.
        if not watcher.is_running:
            store.close_connections()


def _frame(watcher: Watcher, server: str, console: Console, sort: str) -> RenderableType:
    view, problem = watcher.view, watcher.problem
    parts: list[RenderableType] = [header(server, watcher.read_at)]
    if problem is not None:
        parts += [
            Text(problem, style="bold red"),
            Text("Retrying; the figures below are old.\n", style="red"),
        ]
    if view is None:
        parts.append(Text("" if problem else "reading ...", style="dim"))
    else:
        parts.append(draw(view, width=console.width, sort=sort, history=list(watcher.history)))
    return Group(*parts, Text(), footer(sort))
