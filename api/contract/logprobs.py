"""Logprobs on the wire: a token's place in the distribution that the model gave."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from pagefleet.api.contract.wire_model import WireModel

__all__ = ["Logprob", "TokenLogprobs"]


class Logprob(WireModel):
    """A token, what it spells by itself, and the natural logarithm of its probability."""

    # A part of what is stored: the whole has the version.
    model_config = ConfigDict(extra="ignore")

    token_id: int
    logprob: float
    text: str
    token_bytes: list[int] | None = None
    """Where ``text`` is not all of it: a token may be a part of a character."""

    @property
    def spelled(self) -> bytes:
        return self.text.encode() if self.token_bytes is None else bytes(self.token_bytes)


class TokenLogprobs(Logprob):
    """One position of an answer or of a prompt.

    ``rank`` is 1 for the most likely token; ``top`` holds as many of them as were asked for, the most likely
    first.
    """

    rank: int = Field(ge=1)
    top: list[Logprob] = Field(default_factory=list)
