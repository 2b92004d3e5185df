"""One choice of a job that this worker holds: its tokens, and how many of them the server has."""

from __future__ import annotations

from dataclasses import dataclass, field

from pagefleet.api.contract.logprobs import TokenLogprobs
from pagefleet.api.contract.messages import LogEntry


@dataclass(slots=True, eq=False)
class ActiveChoice:
    """``token_ids`` and ``texts`` hold everything since the choice's beginning, the log's part included: any
    suffix can be sent again when the server forgot it."""

    index: int
    token_ids: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None
    """One for each token, where they are asked for."""
    prompt_logprobs: list[TokenLogprobs] | None = None
    """Go with the first token."""
    prompt_token_ids: list[int] | None = None
    """The same way; of choice 0, where they are asked for."""
    num_sent: int = 0
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    has_ended: bool = False
    """The server knows its end."""

    @property
    def has_news(self) -> bool:
        return not self.has_ended and (len(self.token_ids) > self.num_sent or self.finish_reason is not None)

    def take_log(self, entry: LogEntry) -> None:
        """What an earlier attempt left."""
        self.token_ids += entry.token_ids
        self.texts += entry.texts
        if self.logprobs is not None:
            self.logprobs += entry.logprobs or ()
        self.prompt_logprobs = self.prompt_logprobs or entry.prompt_logprobs

    def next_entry(self) -> LogEntry:
        """Everything that the log does not have yet."""
        begin = self.num_sent
        return LogEntry(
            choice=self.index,
            offset=begin,
            token_ids=self.token_ids[begin:],
            texts=self.texts[begin:],
            logprobs=None if self.logprobs is None else self.logprobs[begin:],
            prompt_logprobs=self.prompt_logprobs if begin == 0 and self.token_ids else None,
            prompt_token_ids=self.prompt_token_ids if begin == 0 and self.token_ids else None,
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
        )
