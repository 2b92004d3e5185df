"""NullExecutor: made-up tokens at a fixed pace, without a model. Does not need torch."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pagefleet.engine.config import NullOptions
from pagefleet.engine.core.sequence import Sequence
from pagefleet.engine.execution.executor import Executor, Pending, StepResult
from pagefleet.engine.execution.step_input import StepInput
from pagefleet.engine.execution.token_masks import GrammarRow, TokenMasks
from pagefleet.engine.outputs import TokenLogprobs
from pagefleet.engine.sampling.philox import uniforms
from pagefleet.engine.text.tokenizer import ByteTokenizer

__all__ = ["NullExecutor", "null_token", "null_tokens"]

BEGIN_RECITAL, END_RECITAL = b"<recite>", b"</recite>"
FAIL_STEP, LOSE_DEVICE = b"<fault step>", b"<fault device>"
FIRST_PRINTABLE = 0x20
NUM_PRINTABLE = 95


class NullExecutor(Executor):
    """An executor without a model: it samples made-up tokens at a fixed pace."""

    is_asynchronous = True

    def __init__(self, options: NullOptions) -> None:
        self._options = options
        self._is_lost = False
        self._step_ends_at = 0.0
        self._masks: TokenMasks | None = None

    def submit(self, step: StepInput) -> Pending:
        """See `Executor.submit`."""
        return _Running(self, step, self._end_of_step(len(step.token_ids)))

    def execute(self, step: StepInput) -> StepResult:
        """See `Executor.execute`."""
        return self.submit(step).result()

    def finish(self, step: StepInput) -> StepResult:
        """Return the result of a step that has ended."""
        sequences = step.guests.sequences
        if self._options.faults:
            self._raise_requested_fault(sequences)
        batch, guests = step.batch, step.guests
        token_ids = null_tokens(batch.seed, batch.choice, batch.position, self._options.period)
        if self._options.recites:
            self._recite(step, token_ids)
        for each in guests.grammar_rows:
            self._keep_to_grammar(each, token_ids)
        logprobs = {row: _certain(int(token_ids[row]), num) for row, num in guests.num_logprobs.items()}
        prompt_logprobs = {}
        start = 0
        for index, length in guests.prompts.lengths.items():
            rows = range(start, start + length)
            found = [_certain(guests.prompts.token_ids[row], guests.prompts.num_top[row]) for row in rows]
            prompt_logprobs[index] = tuple(found)
            start += length
        return StepResult(token_ids, logprobs, prompt_logprobs)

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

    def _raise_requested_fault(self, sequences: list[Sequence]) -> None:
        """Raise RuntimeError, as a real device would, if a prompt contains one of the fault markers."""
        prompts = [_prompt_bytes(sequence) for sequence in sequences]
        self._is_lost |= any(LOSE_DEVICE in prompt for prompt in prompts)
        if self._is_lost:
            raise RuntimeError("The null device is lost.")
        if any(FAIL_STEP in prompt for prompt in prompts):
            raise RuntimeError("The null device fails on this batch.")

    def _recite(self, step: StepInput, token_ids: NDArray[np.int64]) -> None:
        """Replace the tokens of the sequences whose prompts have a recital."""
        for row, index in enumerate(step.rows.entries.tolist()):
            text = _recital(step.guests.sequences[index])
            if text is not None:
                position = int(step.batch.position[row])
                token_ids[row] = text[position] if position < len(text) else ByteTokenizer.EOS_TOKEN_ID

    def _keep_to_grammar(self, each: GrammarRow, token_ids: NDArray[np.int64]) -> None:
        """Replace the sequence's tokens by ones that the grammar allows, as a function of the originals."""
        vocab_size = self._options.vocab_size
        if self._masks is None:
            self._masks = TokenMasks(vocab_size, (ByteTokenizer.EOS_TOKEN_ID,))
        wait = self._masks.start([each._replace(row=0)])
        assert wait is not None
        masks: list[list[int]] = wait().packed.tolist()
        recites = self._options.recites and _recital(each.sequence) is not None
        pick = _pick_unless_allowed if recites else _pick
        for row, mask in enumerate(masks, each.row):
            token_ids[row] = pick(mask, int(token_ids[row])) if any(mask) else vocab_size

    def _end_of_step(self, num_tokens: int) -> float:
        """Return when a step that is submitted now would end on a real device, on the monotonic clock.

        The host's work since the last step overlaps with it, so the pace does not depend on the host as long
        as the host keeps up."""
        options, now = self._options, time.monotonic()
        step_s = options.step_time_s + num_tokens * options.token_time_s
        begins_at = self._step_ends_at if now - self._step_ends_at < options.step_time_s else now
        self._step_ends_at = begins_at + step_s
        return self._step_ends_at


class _Running(Pending):
    """A step on the imitated device."""

    def __init__(self, executor: NullExecutor, step: StepInput, ends_at: float) -> None:
        self._executor, self._step, self._ends_at = executor, step, ends_at

    def result(self) -> StepResult:
        left_s = self._ends_at - time.monotonic()
        if left_s > 0:
            time.sleep(left_s)
        return self._executor.finish(self._step)


def null_token(seed: int, choice: int, position: int, period: int | None = None) -> int:
    """Return the token at an output position: a printable ASCII byte, a pure function of the arguments."""
    seeds, choices, positions = np.array([[seed], [choice], [position]], dtype=np.uint64)
    return int(null_tokens(seeds, choices, positions, period)[0])


def null_tokens(
    seeds: NDArray[Any], choices: NDArray[Any], positions: NDArray[Any], period: int | None = None
) -> NDArray[np.int64]:
    """Return int64 [N], `null_token` for each row."""
    positions = positions % period if period else positions
    found: NDArray[np.int64] = FIRST_PRINTABLE + (uniforms(seeds, choices, positions) * NUM_PRINTABLE).astype(
        np.int64
    )
    return found


def _recital(sequence: Sequence) -> bytes | None:
    """Return the text between the prompt's last recital markers; None if it has no marker."""
    _, begin, rest = _prompt_bytes(sequence).rpartition(BEGIN_RECITAL)
    return rest.partition(END_RECITAL)[0] if begin else None


def _prompt_bytes(sequence: Sequence) -> bytes:
    """Return the prompt's bytes; its special tokens are left out."""
    prompt = sequence.token_ids[: sequence.num_prompt_tokens]
    return prompt[prompt < ByteTokenizer.NUM_BYTES].astype(np.uint8).tobytes()


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
