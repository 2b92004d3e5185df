"""ActiveChoice: one choice of a job that this worker holds, with its tokens and how many Redis has."""

from __future__ import annotations

from dataclasses import dataclass, field

from pagefleet.api.contract.logprobs import TokenLogprobs
from pagefleet.api.contract.messages import LogEntry
from pagefleet.api.contract.plain_entry import plain_entry_json


@dataclass(slots=True, eq=False)
class ActiveChoice:
    """``token_ids`` and ``texts`` start with the choice's first token and include those of earlier attempts,
    so that any suffix can be sent again if Redis has lost it."""

    index: int
    token_ids: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None
    """One per token; None if the request does not ask for logprobs."""
    prompt_logprobs: list[TokenLogprobs] | None = None
    """Sent with the first token."""
    prompt_token_ids: list[int] | None = None
    """Sent with the first token of choice 0, if the request asks for them."""
    num_sent: int = 0
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    has_ended: bool = False
    """Redis has stored the finish reason."""

    @property
    def has_unsent(self) -> bool:
        return not self.has_ended and (len(self.token_ids) > self.num_sent or self.finish_reason is not None)

    def add_log_entry(self, entry: LogEntry) -> None:
        """Add tokens that an earlier attempt wrote to the log."""
        self.token_ids += entry.token_ids
        self.texts += entry.texts
        if self.logprobs is not None:
            self.logprobs += entry.logprobs or ()
        self.prompt_logprobs = self.prompt_logprobs or entry.prompt_logprobs

    def next_entry(self) -> str:
        """Return everything that the log does not contain yet, as the JSON of a :class:`LogEntry`."""
        begin = self.num_sent
        has_prompt = begin == 0 and (self.prompt_logprobs is not None or self.prompt_token_ids is not None)
        if self.logprobs is None and self.finish_reason is None and not has_prompt:
            # Most entries, one for each token of each stream: a model of pydantic takes ten times as long.
            return plain_entry_json(self.index, begin, self.token_ids[begin:], self.texts[begin:])
        is_first = begin == 0 and bool(self.token_ids)
        return LogEntry(
            choice=self.index,
            offset=begin,
            token_ids=self.token_ids[begin:],
            texts=self.texts[begin:],
            logprobs=None if self.logprobs is None else self.logprobs[begin:],
            prompt_logprobs=self.prompt_logprobs if is_first else None,
            prompt_token_ids=self.prompt_token_ids if is_first else None,
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
        ).to_json()
