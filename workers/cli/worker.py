"""``pagefleet worker``: serve one model with one process."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any

import click

from pagefleet.api.cli.options import given, redis_option
from pagefleet.api.cli.settings_options import setting_options
from pagefleet.workers.observe.logs import configure_logging
from pagefleet.workers.settings import WorkerSettings

logger = logging.getLogger(__name__)


@click.command()
@setting_options(
    WorkerSettings,
    "model",
    "revision",
    "served_name",
    "aliases",
    "backend",
    "dtype",
    "device",
    "chat_template",
    "num_threads",
    "max_num_seqs",
    "max_num_batched_tokens",
    "speculate",
    "max_model_len",
    "num_blocks",
    "kv_memory",
    "tool_parser",
    "reasoning_parser",
    "max_queue_depth",
    "max_tenant_depth",
    "lease_s",
    "drain_s",
    "metrics_port",
    "metrics_host",
    "trace_steps",
    "trace_file",
    "log_format",
    "log_level",
    "null_step_time_s",
    "null_token_time_s",
    "null_period",
    "null_recites",
    "null_weights",
    "null_version",
    flags={
        "aliases": "--alias",
        "lease_s": "--lease-seconds",
        "drain_s": "--drain-seconds",
        "null_step_time_s": "--null-step-time",
        "null_token_time_s": "--null-token-time",
    },
)
@redis_option
def worker(**options: Any) -> None:
    """Serve a model with one process.

    After SIGTERM or Ctrl-C the worker takes no new jobs, finishes the running ones and stops.

    Each option is also a setting: --max-num-seqs 32 is PAGEFLEET_MAX_NUM_SEQS=32 in the environment or in
    ./.env, and max_num_seqs = 32 in the [worker] table of ./pagefleet.toml. docs/settings.md lists all
    settings.

    \b
    Examples:
      pagefleet worker --model smollm2-135m-instruct
      pagefleet worker --model Qwen/Qwen3-0.6B --dtype bfloat16 --device cuda
    """
    settings = WorkerSettings.from_files(**given(options))
    configure_logging(settings)
    _silence_celery()
    sys.exit(_run(settings))


def _silence_celery() -> None:
    from celery.exceptions import CPendingDeprecationWarning, SecurityWarning

    # Celery warns about running as root because of pickle, which pagefleet workers do not accept, and about
    # running tasks that Celery 6 will cancel when the connection is lost, which make_celery configures.
    warnings.simplefilter("ignore", SecurityWarning)
    warnings.simplefilter("ignore", CPendingDeprecationWarning)


def _run(settings: WorkerSettings) -> int:
    # Imported late: `pagefleet worker --help` does not need Celery's worker and the engine.
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
