"""``pagefleet prepare``: puts a model where workers find it ready."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pagefleet.api.cli.options import given
from pagefleet.workers.settings import WorkerSettings


@click.command()
@click.option("--model", metavar="M", help="A folder, a GGUF file, a hub id or an alias.")
@click.option("--cache-dir", type=click.Path(path_type=Path), help="Where converted checkpoints are kept.")
def prepare(**options: Any) -> None:
    """Fetch and convert a model, so that the workers that serve it start at once. Options not given come
    from PAGEFLEET_* variables.

    \b
    pagefleet prepare --model Qwen/Qwen3-0.6B
    """
    settings = WorkerSettings.from_files(**given(options))
    if settings.backend == "null":
        click.echo("the null backend needs no model")
        return
    # Only now: torch.
    from pagefleet.engine import EngineError
    from pagefleet.engine.loading.checkpoint import resolve

    try:
        checkpoint = resolve(settings.model, settings.cache_dir)
    except EngineError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{checkpoint.name} is ready in {checkpoint.folder}")
