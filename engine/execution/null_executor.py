"""NullExecutor: made-up tokens at a fixed pace, without a model. Does not need torch."""

from __future__ import annotations

import struct
import time
from hashlib import blake2b
from typing import TYPE_CHECKING

from pagefleet.engine.config import NullOptions
from pagefleet.engine.core.scheduler_output import ScheduledSequence
from pagefleet.engine.core.sequence import Sequence
from pagefleet.engine.core.speculation import num_verified
from pagefleet.engine.execution.executor import Executor
from pagefleet.engine.outputs import Sampled, TokenLogprobs
from pagefleet.engine.text.tokenizer import ByteTokenizer

if TYPE_CHECKING:
    from pagefleet.engine.execution.token_masks import TokenMasks

__all__ = ["NullExecutor", "null_token"]

BEGIN_RECITAL, END_RECITAL = b"<recite>", b"</recite>"
FAIL_STEP, LOSE_DEVICE = b"<fault step>", b"<fault device>"
FIRST_PRINTABLE = 0x20
NUM_PRINTABLE = 95


class NullExecutor(Executor):
    """An executor without a model: it samples made-up tokens at a fixed pace."""

    def __init__(self, options: NullOptions) -> None:
        self._options = options
        self._is_lost = False
        self._step_ends_at = 0.0
        self._masks: TokenMasks | None = None

    def execute(self, scheduled: list[ScheduledSequence]) -> list[Sampled]:
        """See `Executor.execute`."""
        self._wait_for_end_of_step(sum(entry.num_new_tokens for entry in scheduled))
        if self._options.faults:
            self._raise_requested_fault(scheduled)
        return [self._sample(entry) for entry in scheduled]

    def has_lost_device(self, error: Exception) -> bool:
        """See `Executor.has_lost_device`."""
        return self._is_lost

    def sleep(self) -> None:
        """Do nothing: there is no memory to free."""

    def wake(self) -> None:
        """Do nothing: there are no weights to load."""

    def close(self) -> None:
        """See `Executor.close`."""
        if self._masks is not None:
            self._masks.close()

    def _raise_requested_fault(self, scheduled: list[ScheduledSequence]) -> None:
        """Raise RuntimeError, as a real device would, if a prompt contains one of the fault markers."""
        prompts = [_prompt_bytes(entry.sequence) for entry in scheduled]
        self._is_lost |= any(LOSE_DEVICE in prompt for prompt in prompts)
        if self._is_lost:
            raise RuntimeError("The null device is lost.")
        if any(FAIL_STEP in prompt for prompt in prompts):
            raise RuntimeError("The null device fails on this batch.")

    def _sample(self, entry: ScheduledSequence) -> Sampled:
        sequence, drafted = entry.sequence, entry.draft_token_ids
        prompt = _prompt_logprobs(sequence, sequence.num_computed_tokens + entry.num_new_tokens)
        if not entry.is_sampled:
            return Sampled(prompt_logprobs=prompt)
        first = sequence.num_output_tokens
        positions = range(first, first + len(drafted) + 1)
        sampled = self._recited(sequence, positions) or [
            null_token(sequence.seed, sequence.choice, position, self._options.period)
            for position in positions
        ]
        if sequence.grammar is not None:
            sampled = self._within_grammar(entry, sampled)
        token_ids = tuple(sampled[: num_verified(sampled, drafted)])
        num_top = sequence.sampling_params.logprobs
        logprobs = () if num_top is None else tuple(_certain(token_id, num_top) for token_id in token_ids)
        return Sampled(token_ids, logprobs, prompt)

    def _recited(self, sequence: Sequence, positions: range) -> list[int]:
        """Return the text between the prompt's last recital markers, then end-of-sequence tokens; [] if the
        prompt has no marker or `recites` is off."""
        if not self._options.recites:
            return []
        _, begin, rest = _prompt_bytes(sequence).rpartition(BEGIN_RECITAL)
        if not begin:
            return []
        text = rest.partition(END_RECITAL)[0]
        return [
            text[position] if position < len(text) else ByteTokenizer.EOS_TOKEN_ID for position in positions
        ]

    def _within_grammar(self, entry: ScheduledSequence, token_ids: list[int]) -> list[int]:
        """Replace each of `token_ids` by one that the grammar allows, as a function of the original."""
        # Imported here: an engine without a model starts without numpy.
        from pagefleet.engine.execution.token_masks import GrammarRow, TokenMasks

        vocab_size = self._options.vocab_size
        if self._masks is None:
            self._masks = TokenMasks(vocab_size, (ByteTokenizer.EOS_TOKEN_ID,))
        wait = self._masks.start([GrammarRow(0, entry.sequence, entry.draft_token_ids)])
        assert wait is not None
        masks: list[list[int]] = wait().packed.tolist()
        pick = _pick_unless_allowed if self._recited(entry.sequence, range(1)) else _pick
        return [
            pick(mask, token_id) if any(mask) else vocab_size
            for mask, token_id in zip(masks, token_ids, strict=True)
        ]

    def _wait_for_end_of_step(self, num_tokens: int) -> None:
        """Sleep until the step would end on a real device. The host's work since the last step overlaps with
        it, so the pace does not depend on the host as long as the host keeps up."""
        options, now = self._options, time.monotonic()
        step_s = options.step_time_s + num_tokens * options.token_time_s
        begins_at = self._step_ends_at if now - self._step_ends_at < options.step_time_s else now
        self._step_ends_at = begins_at + step_s
        if self._step_ends_at > now:
            time.sleep(self._step_ends_at - now)


def null_token(seed: int, choice: int, position: int, period: int | None = None) -> int:
    """Return the token at an output position: a printable ASCII byte, a pure function of the arguments."""
    position = position % period if period else position
    digest = blake2b(struct.pack("<QQQ", seed, choice, position), digest_size=8).digest()
    return FIRST_PRINTABLE + int.from_bytes(digest, "little") % NUM_PRINTABLE


def _prompt_bytes(sequence: Sequence) -> bytes:
    """Return the prompt's bytes; its special tokens are left out."""
    return bytes(
        token for token in sequence.token_ids[: sequence.num_prompt_tokens] if token < ByteTokenizer.NUM_BYTES
    )


def _allowed(mask: list[int]) -> list[int]:
    return [number * 32 + bit for number, word in enumerate(mask) for bit in range(32) if word >> bit & 1]


def _pick(mask: list[int], token_id: int) -> int:
    allowed = _allowed(mask)
    return allowed[token_id % len(allowed)]


def _pick_unless_allowed(mask: list[int], token_id: int) -> int:
    """Return `token_id` if the mask allows it, else what `_pick` returns."""
    return token_id if mask[token_id // 32] >> token_id % 32 & 1 else _pick(mask, token_id)


def _certain(token_id: int, num_top: int) -> TokenLogprobs:
    """Return the logprobs of a token with probability 1: there is no distribution."""
    return TokenLogprobs(token_id, 0.0, 1, ((token_id, 0.0),) if num_top else ())


def _prompt_logprobs(sequence: Sequence, end: int) -> tuple[TokenLogprobs, ...]:
    num_top = sequence.sampling_params.prompt_logprobs
    if num_top is None or not sequence.needs_prompt_logits:
        return ()
    followers = sequence.token_ids[sequence.num_computed_tokens + 1 : end + 1]
    return tuple(
        _certain(token_id, num_top)
        for token_id in followers[: sequence.num_prompt_tokens - 1 - sequence.num_computed_tokens]
    )
