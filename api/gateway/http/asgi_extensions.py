"""Extensions of the ASGI scope that the HTTP protocol offers and streams use."""

from __future__ import annotations

from typing import Final

ABORT: Final = "pagefleet.abort"
"""The extension of a scope that drops its connection at once (http_protocol.py)."""


WRITE: Final = "pagefleet.write"
"""The extension of a scope that sends without what stands around the application: for each token that would
cost as much again as the rest of the way."""
