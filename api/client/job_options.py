"""The keyword arguments that every client's ``generate`` and ``chat`` share, and the request made of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from pagefleet.api.contract.errors import UnknownParameter
from pagefleet.api.contract.keys import Lane
from pagefleet.api.contract.sampling import SamplingOptions
from pagefleet.api.contract.structured_outputs import StructuredOptions

DEFAULT_IDLE_TIMEOUT_S: Final = 600.0
"""Seconds without a chunk after which a stream raises ``StreamTimeout``."""
CHAT_ARGUMENTS: Final = ("tools", "tool_choice", "parallel_tool_calls")
"""Arguments of ``chat`` that ``generate`` does not have, besides the messages."""


class JobOptions(SamplingOptions, total=False):
    """Options of ``generate`` and ``chat``, in addition to the sampling parameters
    (:class:`~pagefleet.api.contract.sampling.SamplingParams`). None is the default of each one.

    Args:
        model: the model's name or alias. Required if the fleet serves more than one model.
        job_id: makes the call idempotent: a second call with the same id and the same arguments reads the
            first call's job. With other arguments it raises ``JobExists``.
        lane: ``interactive`` (default) or ``batch``. Jobs of the batch lane use the capacity that the
            interactive lane leaves.
        priority: 0 to 9 within the lane, by default 5. 9 is the most urgent.
        deadline_s: seconds from now until the job is given up. Its stream then ends with finish_reason
            ``deadline``.
        detached: whether the job continues after this process has gone. By default a batch job does, and an
            interactive job is cancelled 10 s after its last client has gone.
        tenant: on whose behalf the job runs. A fleet may limit how many choices the open jobs of one tenant
            have.
        result_ttl_s: seconds for which the job can be read after its end, by default one hour. The model's
            workers set a maximum (``max_result_ttl_s``, by default seven days).
        truncate_prompt_tokens: use only this many tokens from the end of the prompt.
        cache_salt: share the prefix cache only with jobs that have the same salt.
        prefix_cache: False computes the whole prompt and caches none of it for other jobs.
        structured_outputs: constrains the text; exactly one of json_schema, json_object, regex, choice and
            grammar. A schema that is invalid, unsatisfiable or unsupported ends the job with
            ``InvalidRequest``.
        idle_timeout: seconds without a chunk after which the stream raises ``StreamTimeout``, by default
            600. None waits forever.
    """

    model: str | None
    job_id: str | None
    lane: Lane
    priority: int
    deadline_s: float | None
    detached: bool | None
    tenant: str | None
    result_ttl_s: int | None
    truncate_prompt_tokens: int | None
    cache_salt: str | None
    prefix_cache: bool | None
    structured_outputs: StructuredOptions | None
    idle_timeout: float | None


class JobArguments(NamedTuple):
    """The arguments of one call of ``generate`` or ``chat``."""

    job_id: str | None
    fields: dict[str, Any]
    """The request's fields, not yet validated."""
    idle_timeout: float | None


def job_arguments(options: Mapping[str, Any], **source: Any) -> JobArguments:
    """Split the options of one call into the request's fields and those that only the client needs.

    Args:
        options: a :class:`JobOptions`, or what an unchecked caller passed instead.
        source: the prompt or the messages, by the name of the request's field.

    Raises:
        UnknownParameter.
    """
    check_renamed(options)
    fields = {**source, **options}
    job_id, idle_timeout = fields.pop("job_id", None), fields.pop("idle_timeout", DEFAULT_IDLE_TIMEOUT_S)
    return JobArguments(job_id, fields, idle_timeout)


def check_renamed(options: Mapping[str, Any]) -> None:
    """Raises: UnknownParameter: ``timeout``, the former name of ``idle_timeout``."""
    if "timeout" in options:
        raise UnknownParameter(
            "timeout: unknown parameter; use idle_timeout, the seconds without a chunk after which the "
            "stream raises StreamTimeout.",
            param="timeout",
        )


def check_unknown(function: str, unknown: Mapping[str, object]) -> None:
    """Raises: UnknownParameter, TypeError: the call has an argument that ``function`` does not take."""
    check_renamed(unknown)
    for name in unknown:
        raise TypeError(f"{function}() got an unexpected keyword argument {name!r}")
