"""The positions of tokens in a text, for `text_offset` of completions."""

from __future__ import annotations

from collections.abc import Sequence

from pagefleet.api.contract.logprobs import Logprob


def token_places(tokens: Sequence[Logprob], text: str) -> list[int]:
    """Return the index in `text` at which each token begins.

        text    [ before the first | token | token | ... ]  held back or cut off

    The bytes of the tokens are matched with those of the text, from its end. A token that the text does not
    contain (a skipped special token, held-back text, a stop string) has no width. A token that is part of a
    character begins where the character begins.
    """
    content = text.encode()
    begins = _begins([each.as_bytes for each in tokens], content)
    return [len(content[:begin].decode(errors="ignore")) for begin in begins]


def _begins(tokens: Sequence[bytes], content: bytes) -> list[int]:
    """Return the index in `content` at which the bytes of each token begin."""
    end, begins = len(content), []
    for index in range(len(tokens) - 1, -1, -1):
        token = tokens[index]
        if content[:end].endswith(token):
            end -= len(token)
        elif token.startswith(b" ") and token[1:] == content[:end]:
            # SentencePiece's first word begins with a space, which the text does not contain.
            end = 0
        elif end == len(content) and not (index and content.endswith(tokens[index - 1])):
            end -= _overlap(content, token)
        begins.append(end)
    return begins[::-1]


def _overlap(content: bytes, token: bytes) -> int:
    """Return how many bytes of a token are at the end of a text that was cut within it."""
    return next((size for size in range(len(token) - 1, 0, -1) if content.endswith(token[:size])), 0)
