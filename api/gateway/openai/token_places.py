"""Where tokens stand in a text: what `text_offset` of a completion says."""

from __future__ import annotations

from collections.abc import Sequence

from pagefleet.api.contract.logprobs import Logprob


def token_places(tokens: Sequence[Logprob], text: str) -> list[int]:
    """Return the index in `text` at which each token begins; what stands before the first one is not theirs.

        text    [ before the first | token | token | ... ]  held back or cut off

    The bytes of the tokens are laid on those of the text, from its end. A token that is not there (a skipped
    special token, text that is held back or was a stop string) takes no room, and a part of a character
    begins where the character does.
    """
    content = text.encode()
    begins = _begins([each.spelled for each in tokens], content)
    return [len(content[:begin].decode(errors="ignore")) for begin in begins]


def _begins(spelled: Sequence[bytes], content: bytes) -> list[int]:
    """Where each token's bytes begin."""
    end, begins = len(content), []
    for index in range(len(spelled) - 1, -1, -1):
        token = spelled[index]
        if content[:end].endswith(token):
            end -= len(token)
        elif token.startswith(b" ") and token[1:] == content[:end]:
            # SentencePiece's first word: its space is not part of a text that it begins.
            end = 0
        elif end == len(content) and not (index and content.endswith(spelled[index - 1])):
            end -= _overlap(content, token)
        begins.append(end)
    return begins[::-1]


def _overlap(content: bytes, token: bytes) -> int:
    """How many bytes of a token whose end is missing stand at the end of the text."""
    return next((size for size in range(len(token) - 1, 0, -1) if content.endswith(token[:size])), 0)
