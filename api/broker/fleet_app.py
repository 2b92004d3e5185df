"""The Celery class of this project."""

from __future__ import annotations

from typing import Any

from celery import Celery

_HIDDEN = "..."


class FleetApp(Celery):  # type: ignore[misc]
    """Celery whose messages and events do not repeat their arguments: a bare message's are a prompt, and
    whoever may watch the events would read it."""

    def send_task(self, name: str, *args: Any, **options: Any) -> Any:
        options.setdefault("argsrepr", _HIDDEN)
        options.setdefault("kwargsrepr", _HIDDEN)
        return super().send_task(name, *args, **options)
