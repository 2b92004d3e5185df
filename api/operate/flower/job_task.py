"""JobTask: the state of a job in Flower, built from Celery's events."""

from __future__ import annotations

from typing import Any, ClassVar

from celery.events.state import Task

from pagefleet.api.broker.arguments import HIDDEN, shorten_repr


class JobTask(Task):  # type: ignore[misc]
    """Celery's state of a task, with the attempts and queue time that our workers add to ``task-started``.

    Arguments are shortened on receipt, so that no page, API or search has their full text.
    """

    prompt_chars: ClassVar[int] = 0
    attempts: Any = None
    queue_s: Any = None
    _fields = (*Task._fields, "queue_time", "attempts")

    def event(
        self,
        type_: str,
        timestamp: Any = None,
        local_received: Any = None,
        fields: Any = None,
        **options: Any,
    ) -> None:
        fields = dict(fields or {})
        for name in ("args", "kwargs"):
            if name in fields:
                displayed = shorten_repr(fields.pop(name), self.prompt_chars)
                # Later events lack the arguments; those of an earlier event are kept.
                if displayed != HIDDEN or getattr(self, name) is None:
                    fields[name] = displayed
        super().event(type_, timestamp, local_received, fields, **options)
        # Celery's own count of retries restarts at 0 when the message is delivered again.
        if isinstance(self.attempts, int):
            self.retries = self.attempts - 1

    @property
    def queue_time(self) -> str | None:
        """The time from the submission until a worker started the job; for other tasks, from their events.

        The text is padded so that it sorts like a number: Flower compares unknown columns as text, and HTML
        does not show leading spaces.
        """
        seconds = self.queue_s
        if seconds is None and self.attempts is None and self.started is not None:
            begin = self.received if self.sent is None else self.sent
            seconds = None if begin is None else max(0.0, self.started - begin)
        return f"{seconds:12.3f} s" if isinstance(seconds, int | float) else None
