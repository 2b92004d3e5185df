"""Which token sequences a request's bad words are."""

from __future__ import annotations

from collections.abc import Sequence

from pagefleet.engine.errors import InvalidRequestError
from pagefleet.engine.text.tokenizer import Tokenizer

__all__ = ["bad_word_token_ids"]


def bad_word_token_ids(words: Sequence[str], tokenizer: Tokenizer, vocab_size: int) -> list[list[int]]:
    """Each word as the tokenizer cuts it at the beginning of a text, and, where that is another token
    sequence of the same length, after a blank. (vLLM's rule: `SamplingParams.update_from_tokenizer`.)

    Raises InvalidRequestError where a word has no tokens, or one that the model doesn't know.
    """
    sequences: list[list[int]] = []
    for word in words:
        plain = tokenizer.encode(word.lstrip(), add_special_tokens=False)
        if not plain:
            raise InvalidRequestError(f"bad_words: {word!r} has no tokens.", "invalid_value", "bad_words")
        sequences.append(plain)
        spaced = tokenizer.encode(" " + word.lstrip(), add_special_tokens=False)
        if spaced and spaced[0] != plain[0] and len(spaced) == len(plain):
            sequences.append(spaced)
    if any(token_id >= vocab_size for sequence in sequences for token_id in sequence):
        raise InvalidRequestError(
            "bad_words: the tokenizer makes tokens of them that the model does not know.",
            "token_out_of_vocabulary",
            "bad_words",
        )
    return sequences
