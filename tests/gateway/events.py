"""Server-sent events as a client reads them."""

from __future__ import annotations

import json
from typing import NamedTuple


class Event(NamedTuple):
    id: str
    data: dict | str


def events_of(lines):
    """Every event of a response's lines; comments are events without data."""
    event_id, data = "", None
    for line in lines:
        if line.startswith(":"):
            yield Event("", line)
        elif line.startswith("id: "):
            event_id = line.removeprefix("id: ")
        elif line.startswith("data: "):
            data = line.removeprefix("data: ")
        elif not line and data is not None:
            yield Event(event_id, data if data == "[DONE]" else json.loads(data))
            data = None


def text_of(events, choice=0):
    """The text that the events add to one choice, of either endpoint."""
    choices = [each for event in events if isinstance(event.data, dict) for each in event.data["choices"]]
    mine = [each for each in choices if each["index"] == choice]
    return "".join(each["text"] if "text" in each else each["delta"].get("content", "") for each in mine)
