"""FleetApp: a Celery app that does not publish arguments."""

from __future__ import annotations

from typing import Any

from celery import Celery

_HIDDEN = "..."


class FleetApp(Celery):  # type: ignore[misc]
    """Omits the arguments from the headers of messages and from events.

    A bare message has the prompt in its arguments, which every user with access to the events could read.
    """

    def send_task(self, name: str, *args: Any, **options: Any) -> Any:
        options.setdefault("argsrepr", _HIDDEN)
        options.setdefault("kwargsrepr", _HIDDEN)
        return super().send_task(name, *args, **options)
