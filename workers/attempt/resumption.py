"""Resumption: what an earlier attempt's log says of a job's choices, checked before any goes on from it."""

from __future__ import annotations

from collections.abc import Sequence

from pagefleet.api.contract.errors import ProtocolError
from pagefleet.api.contract.messages import GenerateRequest, LogEntry
from pagefleet.api.protocol.job_record import JobRecord
from pagefleet.workers.job.active_choice import ActiveChoice


def new_choices(request: GenerateRequest, num_tokens: Sequence[int]) -> list[ActiveChoice]:
    """One for each that the hash counts. Raises: ProtocolError where the request asks for another number."""
    if request.sampling.n != len(num_tokens):
        raise ProtocolError(f"The hash counts {len(num_tokens)} choices, the request {request.sampling.n}.")
    asks = request.sampling.logprobs is not None
    return [ActiveChoice(index, logprobs=[] if asks else None) for index in range(len(num_tokens))]


def resume(choices: Sequence[ActiveChoice], num_tokens: Sequence[int], record: JobRecord | None) -> None:
    """Gives the choices what the log holds. Raises: ProtocolError where that is not what the hash counts, or
    not what the request asks for."""
    for entry in record.entries if record is not None else ():
        if entry.choice >= len(choices) or entry.offset != len(choices[entry.choice].token_ids):
            break
        _check_logprobs(choices[entry.choice], entry)
        choices[entry.choice].add_log_entry(entry)
    for choice, count in zip(choices, num_tokens, strict=True):
        choice.num_sent = count
        choice.finish_reason = record.finish_reason(choice.index) if record is not None else None
        choice.has_ended = choice.finish_reason is not None
        if len(choice.token_ids) != count:
            raise ProtocolError(f"The log holds {len(choice.token_ids)} tokens where {count} were counted.")


def _check_logprobs(choice: ActiveChoice, entry: LogEntry) -> None:
    if not entry.token_ids:
        return
    if (entry.logprobs is None) != (choice.logprobs is None):
        raise ProtocolError("The log's entries do not all have the logprobs that the request asks for.")
