"""Extensions of the ASGI scope that the HTTP protocol offers and streams use."""

from __future__ import annotations

from typing import Final

ABORT: Final = "pagefleet.abort"
"""Closes the connection at once, without ending the response (http_protocol.py)."""
WRITE: Final = "pagefleet.write"
"""Sends an ASGI message past the middleware, which would double the cost of each token."""
