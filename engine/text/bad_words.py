"""bad_word_token_ids: the token sequences of a request's bad words."""

from __future__ import annotations

from collections.abc import Sequence

from pagefleet.engine.errors import InvalidRequestError
from pagefleet.engine.text.tokenizer import Tokenizer

__all__ = ["bad_word_token_ids"]


def bad_word_token_ids(words: Sequence[str], tokenizer: Tokenizer, vocab_size: int) -> list[list[int]]:
    """Return the tokens of each word at the beginning of a text and, if they are as many but begin with a
    different one, after a space. (vLLM's rule: `SamplingParams.update_from_tokenizer`.)

    Raises InvalidRequestError if a word has no tokens, or one outside of the model's vocabulary.
    """
    sequences: list[list[int]] = []
    for word in words:
        plain = tokenizer.encode(word.lstrip(), add_special_tokens=False)
        if not plain:
            raise InvalidRequestError(
                f"bad_words: the tokenizer makes no tokens of {word!r}; remove it.",
                "invalid_value",
                "bad_words",
            )
        sequences.append(plain)
        spaced = tokenizer.encode(" " + word.lstrip(), add_special_tokens=False)
        if spaced and spaced[0] != plain[0] and len(spaced) == len(plain):
            sequences.append(spaced)
    if unknown := [each for sequence in sequences for each in sequence if each >= vocab_size]:
        raise InvalidRequestError(
            f"bad_words: token {unknown[0]} is outside of the model's vocabulary of {vocab_size} tokens.",
            "token_out_of_vocabulary",
            "bad_words",
        )
    return sequences
