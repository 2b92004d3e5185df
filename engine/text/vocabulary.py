"""check_vocabulary: whether a tokenizer and an embedding belong together. Does not know files."""

from __future__ import annotations

from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.text.tokenizer import Tokenizer

__all__ = ["check_vocabulary"]


def check_vocabulary(tokenizer: Tokenizer, num_rows: int) -> None:
    """Raise ModelLoadError if an ordinary token has no row in the embedding, which has `num_rows` rows.

    A larger embedding is usual: its size is rounded up. Added tokens may be beyond it, such as the image
    token of Gemma 3's text models or the padding token of many fine-tunes; a prompt that contains one is
    refused.
    """
    for token_id in range(num_rows, tokenizer.vocab_size):
        if tokenizer.token_name(token_id) and not tokenizer.is_added(token_id):
            raise ModelLoadError(
                f"The tokenizer has the token {tokenizer.token_name(token_id)!r} with id {token_id}, but the "
                f"model has embeddings of ids below {num_rows} only: the files belong to different models. "
                "Download the model again."
            )
