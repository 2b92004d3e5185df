"""Where tokens stand in a text: also those that are part of a character, or of no text at all."""

from __future__ import annotations

import pytest

from pagefleet.api.contract.logprobs import Logprob
from pagefleet.api.gateway.openai.token_places import token_places

PARTY = "🎉".encode()


def places(spelled: list[str | bytes], text: str) -> list[int]:
    tokens = [each.encode() if isinstance(each, str) else each for each in spelled]
    made = [Logprob(token_id=0, logprob=0.0, text="", token_bytes=list(each)) for each in tokens]
    return token_places(made, text)


@pytest.mark.parametrize(
    ("text", "tokens", "expected"),
    [
        ("Hello, world", ["Hello", ",", " world"], [0, 5, 6]),
        # An echoed prompt's first token is not among the tokens: it is what stands before.
        ("Say 'Hello 🎉'.", [" '", "Hello", b" " + PARTY[:2], PARTY[2:], "'."], [3, 5, 10, 11, 12]),
        ("🎉é", [*(PARTY[i : i + 1] for i in range(4)), b"\xc3", b"\xa9"], [0, 0, 0, 0, 1, 1]),
        # Special tokens that are skipped take no room, those that are shown take theirs.
        ("----", ["<|pad|>", "<|pad|>", "--", "--"], [0, 0, 0, 2]),
        ("a<|pad|>b", ["a", "<|pad|>", "b", "<|eos|>"], [0, 1, 8, 9]),
        # SentencePiece's first space is not in the text.
        ("the cat", [" the", " cat"], [0, 3]),
        # What may become a stop string is held back, and a stop string is cut off.
        ("hello ", ["hel", "lo <", "e"], [0, 3, 6]),
        ("<b", ["b"], [1]),
        ("a", ["a", "E", "ND"], [0, 1, 1]),
        ("a <", ["a", " <", "<|eos|>"], [0, 1, 3]),
        # Half a character waits for the rest, which comes with a later chunk.
        ("x", ["x", PARTY[:2]], [0, 1]),
        ("🎉y", [PARTY[2:], "y"], [0, 1]),
        ("", ["a"], [0]),
        ("a", [], []),
    ],
)
def test_where_tokens_stand(text, tokens, expected):
    assert places(tokens, text) == expected
