"""``pagefleet status``: print the workers, queues, models and running jobs of a fleet once."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import click
from pydantic import BaseModel
from rich.table import Table

from pagefleet.api.broker.status import read_status
from pagefleet.api.cli.console import make_console
from pagefleet.api.cli.options import redis_option
from pagefleet.api.config.settings import FleetSettings
from pagefleet.api.contract.fleet_status import FleetStatus
from pagefleet.api.protocol.job_store import JobStore


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the status as one JSON object.")
@redis_option
def status(redis_url: str | None, as_json: bool) -> None:
    """Show workers, queues, models and running jobs.

    Prompts and outputs are not shown.

    \b
    Examples:
      pagefleet status
      pagefleet status --json | jq .queues
    """
    # Not through a client, which registers itself in Redis: the user of a monitor may only read.
    store = JobStore(FleetSettings.from_files(redis_url=redis_url))
    try:
        now = read_status(store)
    finally:
        store.close_connections()
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(now), default=_jsonable))
    else:
        _print_tables(now)


def _print_tables(now: FleetStatus) -> None:
    console = make_console()
    workers = Table(
        "worker", "model", "running", "waiting", "KV blocks free", "tokens", "bad messages", title="workers"
    )
    for worker in now.workers:
        blocks = f"{worker.num_free_blocks} / {worker.num_blocks}"
        row = (worker.worker_id, worker.model, worker.num_running, worker.num_waiting, blocks)
        workers.add_row(*map(str, row), str(worker.num_generation_tokens), str(worker.num_bad_messages))
    queues = Table("queue", "queued", "open", title="queues")
    for queue in now.queues:
        queues.add_row(queue.name, str(queue.num_queued), str(queue.num_open))
    running = Table("job", "worker", "tokens", "attempt", "seconds", title="running jobs")
    for job in now.running:
        running.add_row(
            job.job_id, job.worker_id, str(job.num_tokens), str(job.attempts), f"{job.running_s:.1f}"
        )
    models = Table("model", "context", title="models")
    for card in now.models:
        models.add_row(card.name, str(card.max_model_len))
    console.print(models, workers, queues, running, sep="\n")
    if now.refused:
        refused = Table("job", "why it waits", title="given back by a worker")
        for waiting in now.refused:
            refused.add_row(waiting.job_id, waiting.reason)
        console.print(refused)
    if now.hidden:
        hidden = Table("job", title="open jobs that this Redis user is not allowed to read")
        for job_id in now.hidden:
            hidden.add_row(job_id)
        console.print(hidden)
    if now.num_dead_letters:
        console.print(f"{now.num_dead_letters} dead letters: see `pagefleet dead list`.")


def _jsonable(value: Any) -> Any:
    assert isinstance(value, BaseModel), type(value)
    return value.model_dump(mode="json")
