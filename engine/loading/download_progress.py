"""DownloadProgress: shows how much of a download is done. Does not know the hub."""

from __future__ import annotations

import logging
import sys
import threading
import time
from types import TracebackType
from typing import Any, Final, Self, cast

__all__ = ["DownloadCancelledError", "DownloadProgress"]

logger = logging.getLogger(__name__)

_LOG_INTERVAL_S: Final = 10.0


class DownloadCancelledError(Exception):
    """Raised in a transfer after `cancel`."""


class DownloadProgress:
    """A progress bar on a terminal, and a log line every 10 seconds elsewhere. Thread-safe.

    Args:
        total: bytes of all files, including what earlier attempts have downloaded.
    """

    def __init__(self, name: str, total: int, log_interval_s: float = _LOG_INTERVAL_S) -> None:
        from huggingface_hub.utils.tqdm import tqdm

        self._name = name
        self._total = total
        self._log_interval_s = log_interval_s
        self._lock = threading.Lock()
        self._done = 0
        self._kept = 0
        self._started_at = time.monotonic()
        self._ended = threading.Event()
        self._cancelled = False
        self._on_terminal = sys.stderr.isatty()
        self._bar = cast(Any, tqdm)(
            total=total, desc=name, unit="B", unit_scale=True, disable=not self._on_terminal
        )
        self._logging = threading.Thread(target=self._log_until_ended, daemon=True)

    def __enter__(self) -> Self:
        if not self._on_terminal:
            logger.info("%s: downloading %s", self._name, _amount(self._total))
            self._logging.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._bar.close()
        if not self._on_terminal:
            self._logging.join()
            logger.info("%s: %s", self._name, self._state())

    def cancel(self) -> None:
        """Make the transfers raise DownloadCancelledError at their next chunk."""
        self._cancelled = True

    def meter(self, *, initial: int = 0, **_: Any) -> _Meter:
        """Return the progress of one file. `initial` bytes of it were downloaded by an earlier attempt."""
        with self._lock:
            self._done += initial
            self._kept += initial
            if not self._bar.disable:
                # The bar leaves these bytes out of its rate.
                self._bar.initial += initial
            self._bar.update(initial)
        return _Meter(self)

    def add(self, num_bytes: int) -> None:
        if self._cancelled:
            raise DownloadCancelledError
        with self._lock:
            self._done += num_bytes
            self._bar.update(num_bytes)

    def _log_until_ended(self) -> None:
        while not self._ended.wait(self._log_interval_s):
            logger.info("%s: %s", self._name, self._state())

    def _state(self) -> str:
        elapsed_s = time.monotonic() - self._started_at
        rate = (self._done - self._kept) / max(elapsed_s, 1e-3)
        left = self._total - self._done
        text = f"{_amount(self._done)} of {_amount(self._total)} downloaded, {_amount(rate)}/s"
        return f"{text}, {left / rate:.0f} s left" if left and rate else text


class _Meter:
    """What `huggingface_hub` needs of a progress bar."""

    def __init__(self, progress: DownloadProgress) -> None:
        self._progress = progress

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing: the bytes are counted."""

    def update(self, num_bytes: int) -> None:
        self._progress.add(num_bytes)


def _amount(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"
