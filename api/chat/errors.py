"""Kinds of :class:`InvalidRequest` that the gateway's error codes distinguish; a client sees one kind."""

from __future__ import annotations

from pagefleet.api.contract.errors import InvalidRequest


class MissingField(InvalidRequest):
    """A required field is not given."""


class UnsupportedField(InvalidRequest):
    """The field or its value is part of OpenAI's API, but not of pagefleet."""


def refused(param: str, reason: str, kind: type[InvalidRequest] = InvalidRequest) -> InvalidRequest:
    """Return an error about one field; the parts of ``param`` are separated by dots."""
    return kind(f"{param}: {reason}.", param=param)
