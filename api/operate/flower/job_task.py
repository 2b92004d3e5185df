"""JobTask: a job as Flower keeps it, made of Celery's events."""

from __future__ import annotations

from typing import Any, ClassVar

from celery.events.state import Task

from pagefleet.api.broker.arguments import HIDDEN, shorten_repr


class JobTask(Task):  # type: ignore[misc]
    """Celery's state of a task, with what our workers add to ``task-started``: attempt and time in the queue.

    Arguments are shortened when they come, so that neither a page nor the API nor a search has them whole.
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
                shown = shorten_repr(fields.pop(name), self.prompt_chars)
                # Messages do not repeat their arguments; what an event before them said stays.
                if shown != HIDDEN or getattr(self, name) is None:
                    fields[name] = shown
        super().event(type_, timestamp, local_received, fields, **options)
        # A message knows nothing of its job's attempts: one that comes again would begin at 0.
        if isinstance(self.attempts, int):
            self.retries = self.attempts - 1

    @property
    def queue_time(self) -> str | None:
        """From the submit until a worker took the job up; of another service's task, what its events say.

        Text that sorts like the number it is: Flower compares what it does not know as text, and HTML shows
        no spaces at the beginning.
        """
        seconds = self.queue_s
        if seconds is None and self.attempts is None and self.started is not None:
            begin = self.received if self.sent is None else self.sent
            seconds = None if begin is None else max(0.0, self.started - begin)
        return f"{seconds:12.3f} s" if isinstance(seconds, int | float) else None
