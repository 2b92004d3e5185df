"""Build a validated request from a caller's fields, and one readable error from pydantic's."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from pydantic import ValidationError

from pagefleet.api.contract.errors import InvalidRequest, UnknownParameter
from pagefleet.api.contract.messages import FIELD_FAULT, GenerateRequest, SamplingParams

_BRANCHES: Final = frozenset({"bool", "int", "float", "str", "none"})
_OWN_FIELDS: Final = [name for name in GenerateRequest.model_fields if name not in ("v", "sampling")]


def build_request(fields: Mapping[str, Any]) -> GenerateRequest:
    """Return a validated request from flat fields: sampling parameters and others together.

    Raises:
        UnknownParameter: an unknown name; the message has the nearest known one.
        InvalidRequest: a wrong type, a value out of range, an empty prompt, or not exactly one input.
    """
    own, sampling = {}, {}
    for name, value in fields.items():
        if name in SamplingParams.model_fields:
            sampling[name] = value
        elif name in _OWN_FIELDS:
            own[name] = value
        else:
            raise UnknownParameter(_unknown(name), param=name)
    try:
        return GenerateRequest(sampling=SamplingParams(**sampling), **own)
    except ValidationError as error:
        raise invalid_request(error) from None


def invalid_request(error: ValidationError, *, with_value: bool = True) -> InvalidRequest:
    """Return the first of pydantic's errors as one sentence that names the parameter.

    Args:
        with_value: False leaves the given value out, because a log must not contain prompts or answers.
    """
    first = error.errors(include_url=False)[0]
    location = [str(part) for part in first["loc"] if not _is_inside(part)]
    message = without_internals(first["msg"])
    if first["type"] == FIELD_FAULT:
        param = first["ctx"]["param"]
        return InvalidRequest(f"{param}: {message}.", param=param)
    param = ".".join(location) or None
    if param is None:
        return InvalidRequest(f"{message[0].upper()}{message[1:]}.")
    given = repr(first["input"])
    shortened = given if len(given) <= 80 else given[:77] + "..."
    got = f" (got {shortened})" if with_value else ""
    return InvalidRequest(f"{param}: {message[0].lower()}{message[1:]}{got}.", param=param)


def without_internals(message: str) -> str:
    """Return pydantic's message without the words that say how it checks."""
    return message.removeprefix("Value error, ").replace(" after validation", "")


def _is_inside(part: str | int) -> bool:
    """Return whether pydantic added this part: the branch of a union, or a wrong key."""
    return isinstance(part, str) and ("[" in part or part in _BRANCHES)


def check_size(num_bytes: int, max_bytes: int) -> None:
    """Raises: InvalidRequest."""
    if num_bytes > max_bytes:
        raise InvalidRequest(
            f"The request has {num_bytes} bytes, more than the limit of {max_bytes}; shorten it, or raise "
            "PAGEFLEET_MAX_REQUEST_BYTES."
        )


def as_list(token_ids: Sequence[int] | None) -> Any:
    """Return the ids as a list. A value of a wrong type is returned as it is: the request's validation
    reports it better than a TypeError.
    """
    if isinstance(token_ids, str) or not isinstance(token_ids, Iterable):
        return token_ids
    return list(token_ids)


def _unknown(name: str) -> str:
    known = [*SamplingParams.model_fields, *_OWN_FIELDS]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "docs/sampling.md lists the parameters."
    return f"{name}: unknown parameter; {hint}"
