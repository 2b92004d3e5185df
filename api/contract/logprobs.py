"""Logprobs on the wire: tokens with their probability in the model's distribution."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from pagefleet.api.contract.wire_model import WireModel

__all__ = ["Logprob", "TokenLogprobs"]


class Logprob(WireModel):
    """A token, its own text, and the natural logarithm of its probability."""

    # Part of a stored model, which has the version.
    model_config = ConfigDict(extra="ignore")

    token_id: int
    logprob: float
    text: str
    token_bytes: list[int] | None = None
    """The token's bytes if ``text`` cannot represent them: a token may be part of a character."""

    @property
    def as_bytes(self) -> bytes:
        return self.text.encode() if self.token_bytes is None else bytes(self.token_bytes)


class TokenLogprobs(Logprob):
    """One position of an answer or of a prompt.

    ``rank`` is 1 for the most likely token. ``top`` has the requested number of most likely tokens, the most
    likely first.
    """

    rank: int = Field(ge=1)
    top: list[Logprob] = Field(default_factory=list)
