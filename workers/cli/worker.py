"""``pagefleet worker``: one process, one model, one set of devices."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import click
from celery.exceptions import CPendingDeprecationWarning, SecurityWarning

from pagefleet.api.cli.options import given, redis_option
from pagefleet.workers.observe.logs import configure_logging
from pagefleet.workers.settings import WorkerSettings

logger = logging.getLogger(__name__)


@click.command()
@click.option("--model", metavar="M", help="A folder, a GGUF file, a hub id or an alias.")
@click.option("--served-name", metavar="NAME", help="What producers call it; by default made from M.")
@click.option("--alias", "aliases", multiple=True, metavar="NAME", help="One more name; may be given again.")
@click.option("--backend", type=click.Choice(["reference", "null"]), help="null makes tokens up.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float64", "float32", "bfloat16", "float16"]),
    help="What to compute in.",
)
@click.option("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, ...")
@click.option("--num-threads", type=int, help="CPU threads; by default the host's cores.")
@click.option("--max-num-seqs", type=int, help="Sequences in the batch at once.")
@click.option("--max-num-batched-tokens", type=int, help="Tokens of one step at most.")
@click.option("--speculate", type=int, metavar="N", help="Guess N tokens ahead at most; 0: off.")
@click.option("--max-model-len", type=int, help="Caps the model's context.")
@click.option("--num-blocks", type=int, help="KV blocks; by default from the free memory.")
@click.option("--kv-memory", metavar="SIZE", help="The KV cache's size in place of that, as in 2GiB.")
@click.option("--null-step-time", "null_step_time_s", type=float, help="Backend null: seconds of a step.")
@click.option(
    "--null-token-time", "null_token_time_s", type=float, help="Backend null: seconds a token adds."
)
@click.option("--null-period", type=int, help="Backend null: answers repeat after so many tokens.")
@click.option("--null-recites", is_flag=True, default=None, help="Backend null: says what a prompt asks for.")
@click.option("--null-weights", help="Backend null: which weights its fingerprint names.")
@click.option("--null-version", help="Backend null: which version its fingerprint names.")
@click.option(
    "--tool-parser",
    type=click.Choice(["auto", "hermes", "llama3", "mistral", "json"]),
    help="How the model writes calls of tools; by default as its chat template shows.",
)
@click.option(
    "--reasoning-parser",
    type=click.Choice(["auto", "think", "none"]),
    help="How it writes what it thinks; by default as its chat template shows.",
)
@click.option("--max-queue-depth", type=int, help="Open jobs of one lane before QueueFull.")
@click.option("--max-tenant-depth", type=int, help="Open jobs of one tenant in a lane before QueueFull.")
@click.option("--lease-seconds", "lease_s", type=float, help="Without a beat for so long it counts as dead.")
@click.option("--drain-seconds", "drain_s", type=float, help="What running jobs get to finish on SIGTERM.")
@click.option("--metrics-port", type=int, help="For Prometheus; 0 takes a free one. Off by default.")
@click.option("--metrics-host", metavar="HOST", help="Where the metrics listen.  [default: 127.0.0.1]")
@click.option("--trace-steps", type=int, metavar="N", help="Write the first N steps as a trace for Perfetto.")
@click.option("--trace-file", type=click.Path(path_type=Path), help="[default: ./pagefleet-trace-PID.json]")
@click.option("--log-format", type=click.Choice(["plain", "json"]), help="json: one object a line.")
@click.option(
    "--log-level", type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"]), help="How much to say."
)
@redis_option
def worker(aliases: tuple[str, ...], **options: Any) -> None:
    """Serve a model until SIGTERM or Ctrl-C; then drain. Options not given come from PAGEFLEET_*
    variables, ./.env or ./pagefleet.toml.

    \b
    pagefleet worker --model smollm2-135m-instruct
    pagefleet worker --model Qwen/Qwen3-0.6B --dtype bfloat16 --device cuda
    """
    if aliases:
        options["aliases"] = list(aliases)
    settings = WorkerSettings.from_files(**given(options))
    configure_logging(settings)
    # It warns of running as root because of pickle, which no pagefleet worker accepts; and of what Celery 6
    # will do with running tasks when the broker goes away, which is set here.
    warnings.simplefilter("ignore", SecurityWarning)
    warnings.simplefilter("ignore", CPendingDeprecationWarning)
    sys.exit(_run(settings))


def _run(settings: WorkerSettings) -> int:
    # Only now: `pagefleet worker --help` need not wait for Celery's worker and the engine.
    from pagefleet.engine import EngineError
    from pagefleet.workers.app import run_worker

    try:
        return run_worker(settings, _log_stage if settings.log_format == "json" else _report)
    except EngineError as error:
        raise click.ClickException(str(error)) from error


def _log_stage(stage: str, seconds: float) -> None:
    logger.info("start-up: %s", stage, extra={"stage": stage, "seconds": round(seconds, 3)})


def _report(stage: str, seconds: float) -> None:
    click.echo(f"{stage:<24} {seconds:8.2f} s", err=True)
