"""How a worker's log looks: for people or for machines."""

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
    """Of the whole process, to standard error. Celery leaves it as it is (``app.run_worker``)."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_json_formatter() if settings.log_format == "json" else RedactingFormatter(PLAIN))
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
    # Celery logs each message that it receives at info; one line a job is enough, and it is not that one.
    logging.getLogger("celery").setLevel(logging.WARNING)


def _json_formatter() -> logging.Formatter:
    """One object a line; what a call gave as ``extra`` stands beside the message."""
    return _RedactingJsonFormatter(
        _JSON_FIELDS, timestamp=True, rename_fields={"levelname": "level", "name": "logger"}
    )
