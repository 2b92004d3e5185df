"""Configure a worker's logging, as plain text or as JSON."""

from __future__ import annotations

import logging
import sys
from typing import Final

from pythonjsonlogger.json import JsonFormatter

from pagefleet.api.config.log_format import PLAIN, RedactingFormatter
from pagefleet.workers.settings import WorkerSettings

_JSON_FIELDS: Final = ("timestamp", "levelname", "name", "message")


class _RedactingJsonFormatter(RedactingFormatter, JsonFormatter):
    pass


def configure_logging(settings: WorkerSettings) -> None:
    """Log to standard error. ``app.run_worker`` keeps Celery from changing this configuration."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_json_formatter() if settings.log_format == "json" else RedactingFormatter(PLAIN))
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
    # Celery logs each received message at level info. `job_log.log_end` already logs one line per job.
    logging.getLogger("celery").setLevel(logging.WARNING)
    # huggingface_hub's HTTP client logs each request.
    for name in ("httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _json_formatter() -> logging.Formatter:
    """Format each record as one JSON object per line, including its ``extra`` fields."""
    return _RedactingJsonFormatter(
        _JSON_FIELDS, timestamp=True, rename_fields={"levelname": "level", "name": "logger"}
    )
