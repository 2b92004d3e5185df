"""What every refusal looks like."""

from __future__ import annotations


def error_of(reply):
    """The error, once its shape is known to be right."""
    (error,) = reply.json().values()
    assert list(error) == ["message", "type", "param", "code"]
    assert reply.headers["content-type"] == "application/json"
    assert error["message"]
    for inside in ("redis", "traceback", "pydantic", "/usr/", "127.0.0.1"):
        assert inside not in reply.text.lower().replace("redis_", "")
    return error
