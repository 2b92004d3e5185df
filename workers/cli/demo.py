"""``pagefleet demo``: run sixteen prompts through a temporary fleet, live in the terminal."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import click
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pagefleet.api import AsyncFleetClient, WorkerStatus
from pagefleet.api.cli.settings_options import setting_option
from pagefleet.workers.bench.timing import LoadTiming, StreamTiming
from pagefleet.workers.local.local_stack import LocalStack
from pagefleet.workers.settings import WorkerSettings

_SYSTEM: Final = "You are a helpful assistant. Answer in two or three sentences."
_QUESTIONS: Final = (
    "Why is the sky blue?",
    "What is a queue in computer science?",
    "How do bees find flowers?",
    "Why do we have leap years?",
    "What makes bread rise?",
    "How does a bicycle stay upright?",
    "What is the Moon made of?",
    "Why is the sea salty?",
    "How do vaccines work?",
    "What is a black hole?",
    "Why do cats purr?",
    "How does a refrigerator keep food cold?",
    "What is photosynthesis?",
    "Why do leaves change colour in autumn?",
    "How does the internet find a website?",
    "What is an atom?",
)


@dataclass(slots=True)
class Line:
    """One job on the screen."""

    question: str
    timing: StreamTiming = field(default_factory=StreamTiming)
    text: str = ""
    finish_reason: str = ""


@click.command()
@setting_option(WorkerSettings, "model", default="smollm2-135m-instruct")
@click.option("--max-tokens", default=64, show_default=True, help="Maximum number of tokens of each answer.")
def demo(model: str, max_tokens: int) -> None:
    """Run sixteen prompts through a temporary fleet.

    Start a Redis server and a worker, stream sixteen answers at once, print the figures, and stop everything.

    \b
    Examples:
      pagefleet demo
      pagefleet demo --max-tokens 128
    """
    console = Console()
    with tempfile.TemporaryDirectory(prefix="pagefleet-demo-") as folder:
        stack = LocalStack(Path(folder), ["--model", model])
        console.print(f"starting Redis and a worker for {model} ...")
        begun_at = time.monotonic()
        with stack:
            for line in stack.workers[0].read_log():
                console.print(f"  {line}", style="dim", highlight=False)
            console.print(f"serving after {time.monotonic() - begun_at:.1f} s\n")
            lines = [Line(question) for question in _QUESTIONS]
            worker = asyncio.run(_run(stack.redis_url, lines, max_tokens, console))
        _print_figures(console, lines, worker)


async def _run(redis_url: str, lines: Sequence[Line], max_tokens: int, console: Console) -> WorkerStatus:
    async with AsyncFleetClient(redis_url=redis_url) as fleet:
        screen = _Screen(lines, console)
        with screen.live():
            watcher = asyncio.create_task(screen.watch(fleet))
            await asyncio.gather(*(_stream(fleet, line, max_tokens, screen) for line in lines))
            # The worker reports its figures with the next heartbeats.
            await asyncio.sleep(1.0)
            watcher.cancel()
            worker = (await fleet.status()).workers[0]
            screen.worker = worker
        return worker


async def _stream(fleet: AsyncFleetClient, line: Line, max_tokens: int, screen: _Screen) -> None:
    messages = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": line.question}]
    line.timing = StreamTiming()
    stream = await fleet.chat(messages, max_tokens=max_tokens, temperature=0.7, top_p=0.9, seed=1)
    async for chunk in stream:
        line.timing.arrived(len(chunk.token_ids))
        line.text += chunk.text
    line.finish_reason = (await stream.result()).finish_reason or ""
    screen.ended(line)


class _Screen:
    """A growing line for each job and a running total; plain lines if the output is not a terminal."""

    def __init__(self, lines: Sequence[Line], console: Console) -> None:
        self.lines = lines
        self.worker: WorkerStatus | None = None
        self._console = console
        self._is_terminal = console.is_terminal
        self._begun_at = time.monotonic()

    def live(self) -> AbstractContextManager[object]:
        if not self._is_terminal:
            return nullcontext()
        return Live(get_renderable=self._render, console=self._console, refresh_per_second=12)

    async def watch(self, fleet: AsyncFleetClient) -> None:
        """Poll the worker's status, which has the size of its batch."""
        while True:
            workers = (await fleet.status()).workers
            self.worker = workers[0] if workers else None
            if not self._is_terminal:
                print(self._total().plain, flush=True)  # noqa: T201 - rich would wrap the line
            await asyncio.sleep(0.5 if self._is_terminal else 2.0)

    def ended(self, line: Line) -> None:
        if not self._is_terminal:
            print(f"{line.question}  {_one_line(line.text)}", flush=True)  # noqa: T201

    def _render(self) -> Group:
        width = self._console.width
        rows = []
        for line in self.lines:
            row = Text(f"{line.question:<42.42} ", style="bold")
            answer = _one_line(line.text)
            room = max(10, width - 52)
            row.append(answer[-room:].ljust(room), style="default" if not line.finish_reason else "green")
            row.append(f" {line.timing.num_tokens:>4}", style="cyan")
            rows.append(row)
        return Group(*rows, Text(), self._total())

    def _total(self) -> Text:
        num_tokens = sum(line.timing.num_tokens for line in self.lines)
        elapsed_s = time.monotonic() - self._begun_at
        batch = self.worker.last_batch_size if self.worker is not None else 0
        return Text(
            f"{num_tokens} tokens, {num_tokens / elapsed_s:.1f} tok/s, batch {batch}", style="bold cyan"
        )


def _print_figures(console: Console, lines: Sequence[Line], worker: WorkerStatus) -> None:
    load = LoadTiming([line.timing for line in lines])
    mean_batch = worker.num_generation_tokens / max(1, worker.num_decode_steps)
    table = Table("figure", "value", title=f"{len(lines)} jobs, {load.num_tokens} tokens")
    rows = [
        ("time to first token, p50 / p99", f"{load.ttft_ms(0.5):.0f} / {load.ttft_ms(0.99):.0f} ms"),
        ("inter-token latency, p50 / p99", f"{load.itl_ms(0.5):.0f} / {load.itl_ms(0.99):.0f} ms"),
        ("output", f"{load.output_tok_s:.1f} tok/s"),
        ("sequences in one step", f"largest {worker.max_batch_size}, mean {mean_batch:.1f}"),
        ("prefix-cache hits", f"{worker.prefix_cache_hits} of {worker.prefix_cache_queries} tokens"),
    ]
    for row in rows:
        table.add_row(*row)
    console.print(table)
    sys.stdout.flush()


def _one_line(text: str) -> str:
    return " ".join(text.split())
