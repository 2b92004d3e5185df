"""Replay: compute a stored job again and compare the tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pagefleet.api.contract.messages import Fingerprint, ModelCard
from pagefleet.api.protocol.job_record import JobRecord
from pagefleet.engine import LLMEngine
from pagefleet.workers.prompting.prompt import engine_request


@dataclass(frozen=True, slots=True)
class ReplayedChoice:
    """The stored and the replayed tokens of a choice; the replayed ones are never more."""

    index: int
    stored: Sequence[int]
    replayed: Sequence[int]

    @property
    def first_difference(self) -> int | None:
        """The position of the first token that differs or is missing; None if all are equal."""
        if self.stored == self.replayed:
            return None
        common = zip(self.stored, self.replayed, strict=False)
        return next(
            (position for position, (old, new) in enumerate(common) if old != new), len(self.replayed)
        )


def replay(record: JobRecord, engine: LLMEngine, card: ModelCard) -> list[ReplayedChoice]:
    """Compute the job's request again from the start, up to the length of the stored log.

    Args:
        record: a job that has ended, with its log.
        engine: an engine without other requests.

    Raises:
        FleetError: the request cannot be read, or this engine cannot serve it.
    """
    stored = {choice.index: choice.token_ids for choice in record.result().choices}
    replayed: dict[int, list[int]] = {index: [] for index in stored}
    engine.add_request(engine_request(record.job_id, record.request(), (), engine, card))
    while engine.has_unfinished_requests:
        for output in engine.step():
            replayed[output.choice] += output.token_ids
        # A job that was cancelled or failed has fewer tokens than the engine would generate.
        if all(len(replayed[index]) >= len(tokens) for index, tokens in stored.items()):
            engine.abort(record.job_id)
            break
    return [ReplayedChoice(index, tokens, replayed[index][: len(tokens)]) for index, tokens in stored.items()]


def other_weights(stored: Sequence[Fingerprint], here: Fingerprint | None) -> str | None:
    """Describe the difference if another model computed the job; None if no difference is known."""
    for name in ("weights", "tokenizer") if stored and here is not None else ():
        then, now = getattr(stored[-1], name), getattr(here, name)
        if then != now:
            return f"the fingerprint of its {name} was {then}, here it is {now}"
    return None


def differences(stored: Sequence[Fingerprint], here: Fingerprint | None) -> list[str]:
    """Describe how the engines that computed a job differ from this one, one sentence per difference."""
    if here is None:
        return []
    found = []
    for each in stored:
        for name in ("weights", "tokenizer", "dtype", "backend", "version"):
            then, now = getattr(each, name), getattr(here, name)
            if then != now:
                found.append(f"{name}: the job was computed with {then}, this worker has {now}")
    return list(dict.fromkeys(found))
