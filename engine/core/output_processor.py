"""OutputProcessor: turns the tokens of a step into the outputs of its sequences.

Does not know the scheduler: a sequence whose output has a finish reason is ended by the caller.
"""

from __future__ import annotations

import logging

from pagefleet.engine.core.sequence import Sequence
from pagefleet.engine.core.stop_checker import Progress, StopChecker, failed
from pagefleet.engine.outputs import FinishReason, Sampled, SequenceOutput, TokenLogprobs

__all__ = ["OutputProcessor", "empty_output"]

logger = logging.getLogger(__name__)


class OutputProcessor:
    """Makes one SequenceOutput from each sequence's new tokens: text, stop conditions, logprobs."""

    def __init__(self, stop_checker: StopChecker, vocab_size: int) -> None:
        self._stop_checker = stop_checker
        self._vocab_size = vocab_size

    def process(self, sequence: Sequence, sampled: Sampled) -> SequenceOutput:
        """Return the output for the sequence's newest tokens, which are `sampled.token_ids`.

        Tokens after the end of the sequence, and a token that cannot be used, are removed from it.
        """
        num_tokens = sequence.num_tokens - len(sampled.token_ids)
        texts: list[str] = []
        for token_id in sampled.token_ids:
            progress = self._check(sequence, token_id, num_tokens + 1)
            if progress.finish_reason is not FinishReason.ERROR:
                num_tokens += 1
                texts.append(progress.text)
            if progress.finish_reason is not None:
                break
        del sequence.token_ids[num_tokens:]
        return _output(sequence, texts, progress, sampled.logprobs[: len(texts)])

    def _check(self, sequence: Sequence, token_id: int, num_tokens: int) -> Progress:
        if not 0 <= token_id < self._vocab_size:
            return failed(
                "No token could be sampled: the model's logits are not finite numbers, or the request's "
                "parameters allow no token."
            )
        try:
            return self._stop_checker.check(sequence, num_tokens)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            # An error of the tokenizer, which is a library, ends this sequence and not the whole batch. Not
            # `except Exception`: a panic in its Rust code is a BaseException.
            logger.exception("request %s: its token could not be turned into text", sequence.request_id)
            return failed(f"The tokenizer failed on the generated tokens ({type(error).__name__}).")


def empty_output(sequence: Sequence, progress: Progress) -> SequenceOutput:
    """Return an output without tokens, which only reports why the sequence ended."""
    return _output(sequence, [], progress)


def _output(
    sequence: Sequence, texts: list[str], progress: Progress, logprobs: tuple[TokenLogprobs, ...] = ()
) -> SequenceOutput:
    """Return the output for the last `len(texts)` tokens of the sequence."""
    offset = sequence.num_output_tokens - len(texts)
    return SequenceOutput(
        request_id=sequence.request_id,
        choice=sequence.choice,
        offset=offset,
        token_ids=tuple(sequence.token_ids[sequence.num_prompt_tokens + offset :]),
        texts=tuple(texts),
        finish_reason=progress.finish_reason,
        stop_reason=progress.stop_reason,
        num_cached_tokens=sequence.num_cached_tokens,
        logprobs=logprobs,
        prompt_logprobs=tuple(sequence.prompt_logprobs or ()) if offset == 0 and texts else (),
    )
