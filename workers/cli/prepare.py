"""``pagefleet prepare``: download and convert a model before workers start."""

from __future__ import annotations

from typing import Any

import click

from pagefleet.api.cli.options import given
from pagefleet.api.cli.settings_options import setting_options
from pagefleet.workers.observe.logs import configure_logging
from pagefleet.workers.settings import WorkerSettings


@click.command()
@setting_options(WorkerSettings, "model", "revision", "cache_dir")
def prepare(**options: Any) -> None:
    """Download and convert a model before workers start.

    \b
    Examples:
      pagefleet prepare
      pagefleet prepare --model Qwen/Qwen3-0.6B --cache-dir /models
      pagefleet prepare --model Qwen/Qwen3-0.6B --revision c1899de289a04d12100db370d81485cdf75e47ca
    """
    settings = WorkerSettings.from_files(**given(options))
    if settings.backend == "null":
        click.echo("The null backend does not need a model.")
        return
    configure_logging(settings)
    # Imported late: it imports torch.
    from pagefleet.engine import EngineError
    from pagefleet.engine.loading.checkpoint import resolve

    try:
        checkpoint = resolve(settings.model, settings.cache_dir, settings.revision)
    except EngineError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{checkpoint.name} is ready in {checkpoint.folder}")
