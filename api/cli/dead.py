"""``pagefleet dead``: list, requeue and delete dead letters."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import click
from rich.table import Table

from pagefleet.api.cli.console import make_console
from pagefleet.api.cli.options import redis_option
from pagefleet.api.config.settings import FleetSettings

if TYPE_CHECKING:
    from pagefleet.api.operate.dead_letters import DeadLetters


@click.group()
def dead() -> None:
    """List, requeue or delete dead letters.

    A dead letter is a job that was given up because its workers died repeatedly, or because no worker with
    its weights came in time. It is kept for the setting `dead_letter_ttl_s`, one week by default.

    \b
    Examples:
      pagefleet dead list
      pagefleet dead show 5a31c0de
    """


@dead.command(name="list")
@click.option(
    "--json", "as_json", is_flag=True, help="Print the results as one JSON list, without the requests."
)
@redis_option
def list_letters(redis_url: str | None, as_json: bool) -> None:
    """List the dead letters with their models, attempts and reasons.

    Prompts and outputs are not shown.

    \b
    Examples:
      pagefleet dead list
      pagefleet dead list --json | jq -r '.[].job_id'
    """
    if as_json:
        found = [
            record.result().model_dump(mode="json", exclude={"choices"})
            for record in _letters(redis_url).all()
        ]
        click.echo(json.dumps(found, indent=2))
        return
    table = Table("job", "model", "given up", "attempts", "reason")
    for record in _letters(redis_url).all():
        ended_at = record.result().ended_at
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(ended_at)) if ended_at else "?"
        reason = record.error.message if record.error is not None else "?"
        table.add_row(record.job_id, record.model, when, str(record.attempts), reason)
    make_console().print(table)


@dead.command()
@click.argument("job_id")
@redis_option
def show(job_id: str, redis_url: str | None) -> None:
    """Show the request and the result of a dead letter.

    \b
    Examples:
      pagefleet dead show 5a31c0de
    """
    record = _letters(redis_url).get(job_id)
    console, request = make_console(), record.request()
    console.print_json(data={"request": request.model_dump(mode="json", exclude_defaults=True)})
    console.print_json(data=record.result().model_dump(mode="json", exclude_none=True))


@dead.command()
@click.argument("job_id")
@click.option(
    "--from-start",
    is_flag=True,
    help="Discard the tokens, so that a worker with other weights can run the job.",
)
@redis_option
def requeue(job_id: str, from_start: bool, redis_url: str | None) -> None:
    """Submit a dead letter again as a new job, and print its id.

    The dead letter is deleted. If it waited for a worker with its weights, the new job continues after its
    tokens.

    \b
    Examples:
      pagefleet dead requeue 5a31c0de
      pagefleet dead requeue 5a31c0de --from-start
    """
    click.echo(_letters(redis_url).requeue(job_id, from_start=from_start))


@dead.command()
@click.argument("job_ids", nargs=-1, required=True)
@redis_option
def drop(job_ids: tuple[str, ...], redis_url: str | None) -> None:
    """Delete dead letters with their prompts and outputs.

    \b
    Examples:
      pagefleet dead drop 5a31c0de 77ab00f1
    """
    letters = _letters(redis_url)
    for job_id in job_ids:
        letters.drop(job_id)
        click.echo(f"dropped {job_id}")


def _letters(redis_url: str | None) -> DeadLetters:
    # Imported late: Celery is slow to import, and `pagefleet --help` loads this module.
    from pagefleet.api.broker.celery_app import make_celery
    from pagefleet.api.broker.closing import JobCloser
    from pagefleet.api.operate.dead_letters import DeadLetters
    from pagefleet.api.protocol.job_store import JobStore

    settings = FleetSettings.from_files(redis_url=redis_url)
    store, app = JobStore(settings), make_celery(settings)
    return DeadLetters(store, app, JobCloser(store, app))
