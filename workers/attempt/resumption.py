"""Resumption: restore a job's choices from the log of an earlier attempt, after checking the log."""

from __future__ import annotations

from collections.abc import Sequence

from pagefleet.api.contract.errors import ProtocolError
from pagefleet.api.contract.messages import GenerateRequest, LogEntry
from pagefleet.api.protocol.job_record import JobRecord
from pagefleet.workers.job.active_choice import ActiveChoice


def new_choices(request: GenerateRequest, num_tokens: Sequence[int]) -> list[ActiveChoice]:
    """Return the choices of a job without tokens.

    Args:
        num_tokens: the number of tokens of each choice in the job's hash.

    Raises:
        ProtocolError: the hash and the request have different numbers of choices.
    """
    if request.sampling.n != len(num_tokens):
        raise ProtocolError(
            f"The hash has {len(num_tokens)} choices, but the request asks for {request.sampling.n}."
        )
    has_logprobs = request.sampling.logprobs is not None
    return [ActiveChoice(index, logprobs=[] if has_logprobs else None) for index in range(len(num_tokens))]


def resume(choices: Sequence[ActiveChoice], num_tokens: Sequence[int], record: JobRecord | None) -> None:
    """Add the tokens in the log to the choices.

    Raises:
        ProtocolError: the log does not match the numbers in the hash or the logprobs in the request.
    """
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
            raise ProtocolError(
                f"The log has {len(choice.token_ids)} tokens of choice {choice.index}, the hash {count}."
            )


def _check_logprobs(choice: ActiveChoice, entry: LogEntry) -> None:
    if not entry.token_ids:
        return
    if (entry.logprobs is None) != (choice.logprobs is None):
        raise ProtocolError("The log does not have the logprobs that the request asks for.")
