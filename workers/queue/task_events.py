"""Task events of many jobs in one message, encoded fast. Written against Celery 5.7 and kombu 5.7."""

from __future__ import annotations

from typing import Any, Final

from pydantic_core import PydanticSerializationError, to_json

_MAX_EVENTS: Final = 256
"""Events in one message; Celery would send 24."""


def batch_events(dispatcher: Any) -> None:
    """Let Celery's event dispatcher collect events until it is flushed, once a turn of the event loop.

    Celery's own JSON encoder takes 15 us for each of a job's three events.
    """
    dispatcher.buffer_limit = _MAX_EVENTS
    producer = dispatcher.producer
    publish = producer.publish

    def publish_fast(body: Any, *, serializer: str | None = None, **options: Any) -> Any:
        try:
            encoded = to_json(body)
        except PydanticSerializationError:
            # Half of a surrogate pair, or a type that only kombu knows.
            return publish(body, serializer=serializer, **options)
        return publish(encoded, content_type="application/json", content_encoding="utf-8", **options)

    producer.publish = publish_fast
