"""Draw a FleetView: a line of totals and two tables, for terminals with at least 80 columns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from pagefleet.api.operate.top.fleet_view import FleetView, GoneWorker, QueueView, WorkerView

WIDE: Final = 100
"""The terminal width from which bars and the history are drawn, in columns."""
_BAR_CELLS: Final = 8
_QUEUE_FIGURES: Final = 52
"""The width of all columns of a queue except its name."""
_SPARKS: Final = " ▁▂▃▄▅▆▇█"
_OLD_S, _VERY_OLD_S = 60.0, 300.0

SORTS: Final[Mapping[str, Callable[[WorkerView], Any]]] = {
    "name": lambda worker: (worker.status.host, worker.status.pid),
    "running": lambda worker: -worker.status.num_running,
    "KV": lambda worker: -worker.kv_usage,
    "tok/s": lambda worker: -worker.status.generation_tok_s,
}


def draw(view: FleetView, *, width: int, sort: str = "name", history: Sequence[float] = ()) -> Group:
    """Return one frame.

    Args:
        history: tokens per second of the fleet in the previous frames, drawn as a sparkline.
    """
    workers = sorted(view.workers, key=SORTS[sort])
    return Group(
        _totals(view, history if width >= WIDE else ()),
        Text(),
        _worker_table(workers, view.gone, width >= WIDE) if workers or view.gone else _no_workers(),
        Text(),
        _queue_table(view.queues, width)
        if view.queues
        else Text("The fleet has no models yet.", style="dim"),
    )


def header(server: str, at: float) -> RenderableType:
    """Return the first line: the server and the time of the frame."""
    line = Table.grid(expand=True)
    line.add_column(overflow="ellipsis", no_wrap=True)
    line.add_column(justify="right", no_wrap=True)
    title = Text.assemble(("pagefleet", "bold"), ("  ", ""), (server, "dim"))
    line.add_row(title, Text(time.strftime("%H:%M:%S", time.localtime(at)), style="dim"))
    return Group(line, Rule(style="dim"))


def footer(sort: str) -> Text:
    parts = (("q", "bold"), (" quit   ", "dim"), ("s", "bold"), (f" sort by: {sort}", "dim"))
    return Text.assemble(*parts)


def _totals(view: FleetView, history: Sequence[float]) -> Text:
    letters = view.num_dead_letters
    parts: list[tuple[str, str]] = []
    for count, word in (
        (f"{len(view.workers)}", _plural("worker", len(view.workers))),
        (f"{view.num_running}", "running"),
        (f"{view.num_queued}", "queued"),
        (f"{view.generation_tok_s:,.0f}", "tok/s"),
    ):
        parts += [(count, "bold"), (f" {word}   ", "")]
    if history:
        parts += [(_sparkline(history), "cyan"), ("   ", "")]
    if letters:
        parts += [(f"{letters}", "bold yellow"), (f" {_plural('dead letter', letters)}", "yellow")]
    return Text.assemble(*parts)


def _worker_table(workers: Sequence[WorkerView], gone: Sequence[GoneWorker], wide: bool) -> Table:
    table = _table(("worker", "left", 3), ("model", "left", 3), ("state", "left", None))
    for name in ("batch", "wait", "KV", "tok/s", "TTFT p50", "p95", "beat"):
        table.add_column(name, justify="right", no_wrap=True)
    for worker in workers:
        status = worker.status
        table.add_row(
            f"{status.host}/{status.pid}",
            status.model,
            _state(worker),
            str(status.num_running),
            Text(str(status.num_waiting), style="yellow" if status.num_waiting else "dim"),
            _usage(worker.kv_usage, wide),
            f"{status.generation_tok_s:,.0f}",
            _duration(status.ttft_p50_s),
            _duration(status.ttft_p95_s),
            Text(_duration(worker.beat_age_s), style="bold red" if worker.is_late else "dim"),
        )
    for each in sorted(gone, key=lambda one: one.beat_age_s):
        # The id of a worker is HOST-PID-SERIAL.
        host, _, rest = each.worker_id.rpartition("-")[0].rpartition("-")
        name = f"{host}/{rest}" if host else each.worker_id
        table.add_row(name, "", Text("gone", style="red"), *[""] * 6, _duration(each.beat_age_s), style="dim")
    return table


def _queue_table(queues: Sequence[QueueView], width: int) -> Table:
    # Not expanded: with a large gap between name and figures, rows are hard to follow.
    table = _table(("queue", "left", None), ("lane", "left", None), expand=False)
    table.columns[0].max_width = width - _QUEUE_FIGURES
    for name in ("queued", "open", "oldest waiting", "workers"):
        table.add_column(name, justify="right", no_wrap=True)
    for queue in queues:
        # A job that a worker took since its last heartbeat still counts as waiting, for up to a second.
        waits = queue.num_queued > 0 or queue.oldest_s > 1
        old = "bold red" if queue.oldest_s > _VERY_OLD_S else "yellow" if queue.oldest_s > _OLD_S else ""
        no_worker = "bold red" if waits and not queue.num_workers else "dim"
        table.add_row(
            queue.model,
            queue.lane,
            Text(str(queue.num_queued), style="bold" if queue.num_queued else "dim"),
            Text(str(queue.num_open), style="" if queue.num_open else "dim"),
            Text(_duration(queue.oldest_s if waits else None), style=old),
            Text(str(queue.num_workers), style=no_worker),
        )
    return table


def _table(*columns: tuple[str, Any, int | None], expand: bool = True) -> Table:
    """Return a table. Columns with a share of the width shrink in a narrow terminal, the others do not."""
    table = Table(box=None, expand=expand, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    for name, justify, share in columns:
        table.add_column(name, justify=justify, ratio=share, no_wrap=True, overflow="ellipsis")
    return table


def _no_workers() -> Text:
    return Text("No worker holds a lease.", style="bold yellow")


def _state(worker: WorkerView) -> Text:
    if worker.is_late:
        return Text("late", style="bold red")
    if worker.status.is_draining:
        return Text("draining", style="yellow")
    if worker.status.num_running or worker.status.num_waiting:
        return Text("busy", style="green")
    return Text("idle", style="dim")


def _usage(share: float, wide: bool) -> Text:
    style = "bold red" if share > 0.95 else "yellow" if share > 0.8 else "green"
    percent = f"{share * 100:3.0f}%"
    if not wide:
        return Text(percent, style="dim" if share < 0.005 else style)
    full = min(_BAR_CELLS, round(share * _BAR_CELLS + 0.49))
    bar = Text.assemble(("━" * full, style), ("━" * (_BAR_CELLS - full), "bright_black"))
    return bar.append(f" {percent}")


def _sparkline(values: Sequence[float]) -> str:
    most = max(*values, 1.0)
    return "".join(_SPARKS[round(value / most * (len(_SPARKS) - 1))] for value in values)


def _duration(seconds: float | None) -> str:
    """Format a duration in at most five characters: 84ms, 1.2s, 42s, 12m, 3h, 2d."""
    if seconds is None:
        return "-"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 10:
        return f"{seconds:.1f}s"
    for limit, divisor, unit in ((120, 1, "s"), (7200, 60, "m"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / divisor:.0f}{unit}"
    return f"{seconds / 86400:.0f}d"


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"
