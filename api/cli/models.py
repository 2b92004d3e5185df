"""``pagefleet models``: the models of a fleet, and checks of checkpoints."""

from __future__ import annotations

import json
from typing import Final

import click
from rich.table import Table

from pagefleet.api.broker.status import num_open
from pagefleet.api.cli.console import make_console
from pagefleet.api.cli.main import CommandGroup
from pagefleet.api.cli.model_names import complete_model
from pagefleet.api.cli.options import make_client, redis_option
from pagefleet.api.config.settings import FleetSettings
from pagefleet.api.contract import keys
from pagefleet.api.contract.errors import ConfigurationError, UnknownModel
from pagefleet.api.protocol.job_store import JobStore

MODEL_COMMANDS: Final = "pagefleet.models_commands"
"""The entry points of the subcommands that need the engine."""


@click.group(cls=CommandGroup, entry_group=MODEL_COMMANDS, invoke_without_command=True)
@click.pass_context
def models(context: click.Context) -> None:
    """List or remove the models of the fleet, or check a checkpoint.

    Without a subcommand, list them. A model stays in the list after its last worker has stopped.

    \b
    Examples:
      pagefleet models
      pagefleet models remove qwen3-0.6b
      pagefleet models check ./my-checkpoint
    """
    if context.invoked_subcommand is None:
        context.invoke(list_models)


@models.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print the model cards as one JSON list.")
@redis_option
def list_models(redis_url: str | None = None, as_json: bool = False) -> None:
    """List the models with their context lengths and live workers.

    \b
    Examples:
      pagefleet models list
      pagefleet models list --json | jq -r '.[].name'
    """
    with make_client(redis_url) as fleet:
        status = fleet.status()
    if as_json:
        click.echo(json.dumps([card.model_dump(mode="json") for card in status.models], indent=2))
        return
    table = Table("model", "aliases", "context", "dtype", "backend", "workers")
    for card in status.models:
        num_workers = sum(worker.model == card.name for worker in status.workers)
        fingerprint = card.fingerprint
        row = (card.name, ", ".join(card.aliases), card.max_model_len, fingerprint.dtype, fingerprint.backend)
        table.add_row(*map(str, row), str(num_workers))
    make_console().print(table)


@models.command()
@click.argument("name", shell_complete=complete_model)
@click.option(
    "--force", is_flag=True, help="Remove the model even if a worker serves it or it has open jobs."
)
@redis_option
def remove(name: str, force: bool, redis_url: str | None) -> None:
    """Remove a model from the list.

    New jobs for it are refused until a worker serves it again.

    \b
    Examples:
      pagefleet models remove qwen3-0.6b
    """
    store = JobStore(FleetSettings.from_files(redis_url=redis_url))
    served = [worker.worker_id for worker in store.workers() if worker.model == name]
    num_jobs = sum(num_open(store, name, lane) for lane in keys.LANES)
    if (served or num_jobs) and not force:
        raise ConfigurationError(
            f"{name} has {len(served)} live workers and {num_jobs} open jobs; --force removes it anyway."
        )
    if not store.remove_card(name):
        raise UnknownModel(f"There is no model {name!r} to remove.", param="name")
    click.echo(f"removed {name}")
