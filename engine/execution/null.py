"""The null backend: an engine without a model, for tests and for measuring everything around the engine.

Scheduling, blocks, text and stops are the real ones. Only the tokens are made up, and a step lasts as long
as it is told to.
"""

from __future__ import annotations

import struct
import time
from hashlib import blake2b
from importlib.metadata import version
from typing import TYPE_CHECKING

from pagefleet.engine.config import MIN_NULL_VOCAB_SIZE, EngineConfig
from pagefleet.engine.core.scheduler_output import ScheduledSequence
from pagefleet.engine.core.sequence import Sequence
from pagefleet.engine.core.speculation import num_agreed
from pagefleet.engine.execution.executor import Executor, LoadedModel, Report
from pagefleet.engine.model_info import Fingerprint, ModelInfo
from pagefleet.engine.outputs import Sampled, TokenLogprobs
from pagefleet.engine.text.tokenizer import ByteTokenizer

if TYPE_CHECKING:
    from pagefleet.engine.execution.token_masks import TokenMasks

__all__ = ["NullExecutor", "load", "null_token"]

BEGIN_RECITAL, END_RECITAL = b"<recite>", b"</recite>"
FAIL_STEP, LOSE_DEVICE = b"<fault step>", b"<fault device>"
_MOST_UNTIMED = 512
FIRST_PRINTABLE = 0x20
NUM_PRINTABLE = 95


class NullExecutor(Executor):
    """Samples made-up tokens at a fixed cadence."""

    def __init__(
        self,
        step_time_s: float,
        token_time_s: float = 0.0,
        vocab_size: int = MIN_NULL_VOCAB_SIZE,
        period: int | None = None,
        recites: bool = False,
        faults: bool = False,
    ) -> None:
        self._recites = recites
        self._faults = faults
        self._is_lost = False
        self._step_time_s = step_time_s
        self._period = period
        self._token_time_s = token_time_s
        self._vocab_size = vocab_size
        self._step_ends_at = 0.0
        self._masks: TokenMasks | None = None

    def execute(self, scheduled: list[ScheduledSequence]) -> list[Sampled]:
        self._wait_for_end_of_step(sum(entry.num_new_tokens for entry in scheduled))
        if self._faults:
            self._fail(scheduled)
        return [self._sample(entry) for entry in scheduled]

    def has_lost_device(self, error: Exception) -> bool:
        """See `Executor.has_lost_device`."""
        return self._is_lost

    def sleep(self) -> None:
        """Nothing to give back."""

    def wake(self) -> None:
        """Nothing to load."""

    def close(self) -> None:
        if self._masks is not None:
            self._masks.close()

    def _fail(self, scheduled: list[ScheduledSequence]) -> None:
        """Raise what a real device would raise at the prompts that ask for it."""
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
            null_token(sequence.seed, sequence.choice, position, self._period) for position in positions
        ]
        if sequence.grammar is not None:
            sampled = self._within_grammar(entry, sampled)
        token_ids = tuple(sampled[: num_agreed(sampled, drafted)])
        num_top = sequence.sampling_params.logprobs
        logprobs = () if num_top is None else tuple(_certain(token_id, num_top) for token_id in token_ids)
        return Sampled(token_ids, logprobs, prompt)

    def _recited(self, sequence: Sequence, positions: range) -> list[int]:
        """What the prompt asks to be said, then the end of sequence; nothing where it asks nothing."""
        if not self._recites:
            return []
        _, begin, rest = _prompt_bytes(sequence).rpartition(BEGIN_RECITAL)
        if not begin:
            return []
        said = rest.partition(END_RECITAL)[0]
        return [
            said[position] if position < len(said) else ByteTokenizer.EOS_TOKEN_ID for position in positions
        ]

    def _within_grammar(self, entry: ScheduledSequence, token_ids: list[int]) -> list[int]:
        """Of the tokens that may come, those picked by the ones that would have come otherwise."""
        if self._masks is None:
            # Here, not above: an engine without a model starts without numpy.
            from pagefleet.engine.execution.token_masks import TokenMasks

            self._masks = TokenMasks(self._vocab_size, (ByteTokenizer.EOS_TOKEN_ID,))
        packed = self._masks.start([entry])
        assert packed is not None
        masks: list[list[int]] = packed().tolist()
        pick = _nearest if self._recited(entry.sequence, range(1)) else _pick
        return [
            pick(mask, token_id) if any(mask) else self._vocab_size
            for mask, token_id in zip(masks, token_ids, strict=True)
        ]

    def _wait_for_end_of_step(self, num_tokens: int) -> None:
        """Keep the cadence while the host keeps up: its work hides in the step, as beside a real device."""
        now = time.monotonic()
        lasts_s = self._step_time_s + num_tokens * self._token_time_s
        begins_at = self._step_ends_at if now - self._step_ends_at < self._step_time_s else now
        self._step_ends_at = begins_at + lasts_s
        if self._step_ends_at > now:
            time.sleep(self._step_ends_at - now)


def _prompt_bytes(sequence: Sequence) -> bytes:
    """The prompt as the byte tokenizer reads it."""
    return bytes(
        token for token in sequence.token_ids[: sequence.num_prompt_tokens] if token < ByteTokenizer.NUM_BYTES
    )


def _allowed(mask: list[int]) -> list[int]:
    return [number * 32 + bit for number, word in enumerate(mask) for bit in range(32) if word >> bit & 1]


def _pick(mask: list[int], token_id: int) -> int:
    allowed = _allowed(mask)
    return allowed[token_id % len(allowed)]


def _nearest(mask: list[int], token_id: int) -> int:
    """The token itself, where it may come."""
    return token_id if mask[token_id // 32] >> token_id % 32 & 1 else _pick(mask, token_id)


def null_token(seed: int, choice: int, position: int, period: int | None = None) -> int:
    """The token at an output position: a printable ASCII byte, a pure function of its arguments."""
    position = position % period if period else position
    digest = blake2b(struct.pack("<QQQ", seed, choice, position), digest_size=8).digest()
    return FIRST_PRINTABLE + int.from_bytes(digest, "little") % NUM_PRINTABLE


def _certain(token_id: int, num_top: int) -> TokenLogprobs:
    """There is no distribution: what comes was sure to come."""
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


def load(config: EngineConfig, report: Report | None = None) -> LoadedModel:
    """An engine's model made of `config.null`; `num_blocks` and `max_model_len` of `config` go first."""
    started_at = time.monotonic()
    options = config.null
    info = ModelInfo(
        name=config.model,
        max_model_len=min(options.max_model_len, config.max_model_len or options.max_model_len),
        vocab_size=options.vocab_size,
        eos_token_ids=(ByteTokenizer.EOS_TOKEN_ID,),
        block_size=config.block_size,
        num_blocks=config.num_blocks or options.num_blocks,
        fingerprint=Fingerprint(
            weights=options.weights,
            tokenizer="bytes",
            dtype="none",
            backend="null",
            version=options.version or version("pagefleet"),
        ),
    )
    loaded = LoadedModel(
        NullExecutor(
            options.step_time_s,
            options.token_time_s,
            options.vocab_size,
            options.period,
            options.recites,
            options.faults,
        ),
        ByteTokenizer(options.vocab_size),
        info,
        max_num_batched_tokens=_MOST_UNTIMED if config.max_step_s is None else info.max_model_len,
        token_s=options.token_time_s or None,
    )
    if report is not None:
        report("null model", time.monotonic() - started_at)
    return loaded
