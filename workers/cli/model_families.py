"""``pagefleet models families``: the architectures that the engine runs, and those that it refuses."""

from __future__ import annotations

import json
from dataclasses import asdict

import click
from rich.table import Table

from pagefleet.api.cli.console import make_console
from pagefleet.engine.checking.architectures import read_architectures


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the rows as one JSON list.")
def families(as_json: bool) -> None:
    """List the architectures that run, and those that are refused.

    A native family has its own code. A fallback runs with the code of transformers and the engine's
    attention, which is slower. The names are values of `model_type` in config.json.

    \b
    Examples:
      pagefleet models families
      pagefleet models families --json | jq -r '.[] | select(.support == "native").model_type'
    """
    rows = read_architectures()
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows], indent=2))
        return
    table = Table("model type", "architecture", "support", "family, or reason of the refusal")
    for row in rows:
        table.add_row(row.model_type, row.name, row.support, row.note)
    make_console().print(table)
