"""``pagefleet dead``: the jobs that were given up, and what to do with them."""

from __future__ import annotations

import json
import time

import click
from rich.table import Table

from pagefleet.api.broker.celery_app import make_celery
from pagefleet.api.broker.closing import JobCloser
from pagefleet.api.cli.console import make_console
from pagefleet.api.cli.options import redis_option
from pagefleet.api.config.settings import FleetSettings
from pagefleet.api.operate.dead_letters import DeadLetters
from pagefleet.api.protocol.job_store import JobStore


@click.group()
def dead() -> None:
    """The dead letters: jobs whose workers died again and again, or whose weights are gone. They are kept
    for a week.

    \b
    pagefleet dead list
    pagefleet dead show 5a31c0de
    """


@dead.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="One JSON list of results, without requests.")
@redis_option
def list_letters(redis_url: str | None, as_json: bool) -> None:
    """Show each dead letter with its model, its attempts and the reason.

    \b
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
    """Show what is known of the dead letter JOB_ID, its request included.

    \b
    pagefleet dead show 5a31c0de
    """
    record = _letters(redis_url).get(job_id)
    console, request = make_console(), record.request()
    console.print_json(data={"request": request.model_dump(mode="json", exclude_defaults=True)})
    console.print_json(data=record.result().model_dump(mode="json", exclude_none=True))


@dead.command()
@click.argument("job_id")
@click.option("--from-start", is_flag=True, help="Leave its tokens out, so that other weights may begin it.")
@redis_option
def requeue(job_id: str, from_start: bool, redis_url: str | None) -> None:
    """Send the request of the dead letter JOB_ID again, as a new job; the letter is removed.

    If the job waited for its weights in vain, the new job goes on with its tokens.

    \b
    pagefleet dead requeue 5a31c0de
    pagefleet dead requeue 5a31c0de --from-start
    """
    click.echo(_letters(redis_url).requeue(job_id, from_start=from_start))


@dead.command()
@click.argument("job_ids", nargs=-1, required=True)
@redis_option
def drop(job_ids: tuple[str, ...], redis_url: str | None) -> None:
    """Remove the dead letters JOB_IDS, prompts and all.

    \b
    pagefleet dead drop 5a31c0de 77ab00f1
    """
    letters = _letters(redis_url)
    for job_id in job_ids:
        letters.drop(job_id)
        click.echo(f"dropped {job_id}")


def _letters(redis_url: str | None) -> DeadLetters:
    settings = FleetSettings.from_files(redis_url=redis_url)
    store, app = JobStore(settings), make_celery(settings)
    return DeadLetters(store, app, JobCloser(store, app))
