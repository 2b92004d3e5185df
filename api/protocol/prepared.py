"""PreparedRequest: a request that was checked against the model's card and is ready to submit."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pagefleet.api.config.settings import DEFAULT_MAX_REQUEST_BYTES
from pagefleet.api.contract import keys
from pagefleet.api.contract.errors import FleetError, InvalidRequest, JobDeleted, JobExists, QueueFull
from pagefleet.api.contract.messages import GenerateRequest, ModelCard
from pagefleet.api.contract.model_cards import CardIndex, check_fits, check_limits
from pagefleet.api.contract.requests import build_request, check_size
from pagefleet.api.contract.stored_size import reserved_bytes
from pagefleet.api.protocol import operations
from pagefleet.api.protocol.operation_types import (
    NO_LIMIT,
    NO_SCHEDULE,
    Charge,
    Limits,
    Operation,
    QueueMessage,
    Schedule,
    Submitted,
)

JOB_ID: Final = r"^[^\s\x00-\x1f]{1,255}$"


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A request that passed all checks a producer can make, with its id, model card and limits."""

    job_id: str
    request: GenerateRequest
    card: ModelCard
    request_json: str
    """The request as it is stored."""
    max_open: int | None = None
    """Limit of the tenant's open choices in this queue, if lower than the card's."""
    max_stored: int | None = None
    """Limit of the bytes of the tenant's jobs, if lower than the card's."""
    charge: Charge | None = None
    asked: str = ""
    """Hash of the caller's request, without defaults."""

    @property
    def queue(self) -> str:
        return keys.queue(self.card.name, self.request.lane)

    @property
    def num_reserved_bytes(self) -> int:
        """The bytes that the job counts for its tenant until it is closed."""
        return reserved_bytes(self.request, len(self.request_json.encode()))

    @property
    def limits(self) -> Limits:
        card = self.card
        return Limits(
            card.max_queue_depth,
            min(card.max_tenant_depth, self.max_open or card.max_tenant_depth),
            min(card.max_tenant_bytes or NO_LIMIT, self.max_stored or NO_LIMIT),
        )


def check_submitted(submitted: Submitted, prepared: PreparedRequest) -> None:
    """Raise QueueFull, JobExists, JobDeleted or InvalidRequest if SUBMIT did not accept the request."""
    if submitted.is_other:
        raise job_exists(prepared.job_id)
    if submitted.is_deleted:
        raise JobDeleted(
            f"The job {prepared.job_id!r} was deleted and is not submitted again; use another id.",
            job_id=prepared.job_id,
        )
    if submitted.depth is not None:
        raise QueueFull(
            f"The queue {prepared.queue} holds {submitted.depth} jobs, its limit; try again later.",
            job_id=prepared.job_id,
        )
    if submitted.tenant_depth is not None:
        raise QueueFull(
            f"The queue {prepared.queue} holds {submitted.tenant_depth} choices of the tenant "
            f"{prepared.request.tenant!r}, and this job has {prepared.request.sampling.n}, but the limit is "
            f"{prepared.limits.max_tenant_depth}; try again later.",
            param="tenant",
            job_id=prepared.job_id,
        )
    if submitted.tenant_bytes is not None:
        raise _too_much_stored(prepared, submitted.tenant_bytes)


def _too_much_stored(prepared: PreparedRequest, num_stored: int) -> FleetError:
    num_bytes, most = prepared.num_reserved_bytes, prepared.limits.max_tenant_bytes
    need = f"this job may take {num_bytes} bytes with its result"
    if num_bytes > most:
        return InvalidRequest(
            f"max_tokens: {need}, but all jobs of its tenant together {most}; request fewer tokens, choices "
            "or logprobs.",
            param="max_tokens",
            job_id=prepared.job_id,
        )
    return QueueFull(
        f"The jobs of the tenant {prepared.request.tenant!r} take {num_stored} bytes, and {need}, "
        f"but the limit is {most}; delete jobs, or wait until they expire.",
        param="tenant_bytes",
        job_id=prepared.job_id,
    )


def job_exists(job_id: str) -> JobExists:
    return JobExists(
        f"job_id: {job_id!r} belongs to a job with another request or tenant; choose another id, or read "
        "that job with attach().",
        param="job_id",
        job_id=job_id,
    )


def prepare(
    cards: CardIndex,
    job_id: str | None,
    fields: Mapping[str, Any],
    seed: int,
    max_bytes: int = DEFAULT_MAX_REQUEST_BYTES,
) -> PreparedRequest:
    """Validate a request against the model cards, and fill in the model's defaults and canonical name.

    Args:
        job_id: 1 to 255 characters without white space; None for a new UUID.
        fields: of the request. None means that a field is not given.
        seed: used if the request has none.
        max_bytes: limit of the request as JSON.

    Raises:
        InvalidRequest, UnknownModel, ContextTooLong: nothing was sent to Redis.
    """
    if job_id is not None and not _is_job_id(job_id):
        raise InvalidRequest(
            "job_id: must have 1 to 255 characters without spaces and line breaks.", param="job_id"
        )
    model = fields.get("model")
    if model is not None and not isinstance(model, str):
        raise InvalidRequest(f"model: must be a name, not {model!r}.", param="model")
    given = {name: value for name, value in fields.items() if value is not None}
    # Validate before the model is resolved: errors in the fields are more useful than an unknown model.
    request = build_request({**given, "model": model or "-"})
    card = cards.resolve(model)
    if request.model != card.name:
        request = request.model_copy(update={"model": card.name})
    asked = _hash_of(request)
    # Defaults are stored with the job, so that a worker that takes it over uses the same parameters.
    filled = card.default_sampling.fill(given)
    if len(filled) > len(given):
        request = build_request({**filled, "model": card.name})
    sampling = request.sampling
    changes: dict[str, Any] = {} if sampling.seed is not None else {"seed": seed}
    if "max_tokens" not in given:
        # The default of max_tokens must not exceed a short context.
        changes["max_tokens"] = max(sampling.min_tokens, min(sampling.max_tokens, card.max_model_len))
    if changes:
        request = request.model_copy(update={"sampling": sampling.model_copy(update=changes)})
    check_fits(request, card)
    check_limits(request, card)
    request_json = request.model_dump_json(exclude_defaults=True)
    check_size(len(request_json.encode()), max_bytes)
    return PreparedRequest(job_id or str(uuid.uuid4()), request, card, request_json, asked=asked)


def _hash_of(request: GenerateRequest) -> str:
    """Return a hash that does not depend on the order of the fields or on the version of the protocol."""
    fields = request.model_dump(mode="json", exclude_defaults=True, exclude={"v"})
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _is_job_id(job_id: Any) -> bool:
    return isinstance(job_id, str) and re.fullmatch(r"[^\s\x00-\x1f\ud800-\udfff]{1,255}", job_id) is not None


def submit_operation(
    prepared: PreparedRequest,
    channel: str = "",
    client_id: str = "",
    *,
    again: bool = False,
    schedule: Schedule = NO_SCHEDULE,
    message: QueueMessage | None = None,
) -> Operation[Submitted]:
    """Return the SUBMIT of a prepared request; see :func:`operations.submit`."""
    return operations.submit(
        prepared.job_id,
        prepared.request,
        queue=prepared.queue,
        channel=channel,
        limits=prepared.limits,
        client_id=client_id,
        charge=prepared.charge,
        asked=prepared.asked,
        again=again,
        schedule=schedule,
        message=message,
        request_json=prepared.request_json,
    )
