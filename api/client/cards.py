"""CardCache: the model cards that a client has read."""

from __future__ import annotations

import time

from pagefleet.api.contract.messages import ModelCard
from pagefleet.api.contract.model_cards import CardIndex


class CardCache:
    """A client reads the cards again after ``ttl_s``, and for a name that the cache does not have."""

    def __init__(self, ttl_s: float) -> None:
        self._ttl_s = ttl_s
        self._index = CardIndex([])
        self._read_at = float("-inf")

    def get(self, name: str | None) -> CardIndex | None:
        """Return the cached cards if they are fresh and contain ``name``."""
        is_fresh = time.monotonic() - self._read_at < self._ttl_s
        return self._index if is_fresh and name is not None and name in self._index else None

    def read_since(self, moment: float) -> CardIndex | None:
        """Return the cards if they were read after ``moment``: who asked before it need not read again."""
        return self._index if self._read_at > moment else None

    def put(self, cards: list[ModelCard]) -> CardIndex:
        self._index, self._read_at = CardIndex(cards), time.monotonic()
        return self._index
