"""OutputProcessor: turns the tokens of a step into its output: text, stop strings, reasons.

It may run in another thread, in parallel with the next step: it reads only those fields of a sequence that
do not change after its first token, and no other code uses the detokenizers and `has_ended_text`. So a stop
string is found after the next step has begun: the sequence ends one or two steps later, and the tokens after
its end are dropped here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import numpy as np

from pagefleet.engine.core.bookings import Found
from pagefleet.engine.core.scheduler_output import SchedulerOutput
from pagefleet.engine.core.sequence import Sequence
from pagefleet.engine.outputs import FinishReason, StepOutput, TokenLogprobs
from pagefleet.engine.requests.stop_checker import End, TokenEnd
from pagefleet.engine.text.detokenizer import IncrementalDetokenizer, look_up
from pagefleet.engine.text.tokenizer import NO_TEXTS

__all__ = ["OutputProcessor", "Progress", "StepTokens", "progress"]

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class StepTokens:
    """The tokens that a step found, before they have a text: one entry in each list for each sequence, tokens
    end to end. The dicts have the entries of few sequences, by index."""

    sequences: list[Sequence]
    offsets: list[int]
    """Index of each sequence's first new token among its output tokens."""
    token_ids: list[int]
    counts: list[int] | None = None
    """How many tokens each sequence got; None if each got one."""
    ends: dict[int, TokenEnd] = field(default_factory=dict)
    """Why the last token of a sequence, or an event after it, ended it."""
    logprobs: dict[int, tuple[TokenLogprobs, ...]] = field(default_factory=dict)
    """One for each token of the sequence, and maybe more."""

    def __len__(self) -> int:
        return len(self.sequences)

    @classmethod
    def of(
        cls,
        step: SchedulerOutput,
        found: Found,
        ends: Mapping[int, End],
        logprobs: Mapping[int, TokenLogprobs],
    ) -> StepTokens:
        """Return the tokens of a step, without those after an end.

        Args:
            ends: by index in `found`. logprobs: by sampled row of the step.
        """
        indices = found.indices.tolist()
        tokens = cls(
            [step.sequences[index] for index in indices],
            (found.num_known - step.num_prompt_tokens[found.indices]).tolist(),
            found.token_ids.tolist(),
            None if found.counts is None else found.counts.tolist(),
            {index: end for index, (_, end) in ends.items()},
        )
        if logprobs:
            tokens.logprobs = _by_sequence(step, indices, logprobs)
        tokens._cut(ends)
        return tokens

    @classmethod
    def ended(cls, ended: list[tuple[Sequence, TokenEnd]]) -> StepTokens:
        """Return sequences that ended without a new token."""
        sequences = [sequence for sequence, _ in ended]
        offsets = [sequence.num_output_tokens for sequence in sequences]
        ends = {index: end for index, (_, end) in enumerate(ended)}
        return cls(sequences, offsets, [], [0] * len(sequences), ends)

    def __add__(self, other: StepTokens) -> StepTokens:
        """Return the sequences of both, first those of this one."""
        counts = [each.counts if each.counts is not None else [1] * len(each) for each in (self, other)]
        joined = StepTokens(
            self.sequences + other.sequences,
            self.offsets + other.offsets,
            self.token_ids + other.token_ids,
            counts[0] + counts[1],
            self.ends | {len(self) + index: end for index, end in other.ends.items()},
        )
        joined.logprobs = self.logprobs | {len(self) + index: each for index, each in other.logprobs.items()}
        return joined

    def _cut(self, ends: Mapping[int, End]) -> None:
        counts = self.counts if self.counts is not None else [1] * len(self)
        if all(counts[index] == end.num_kept for index, end in ends.items()):
            return
        kept, start = [], 0
        for index, count in enumerate(counts):
            num_kept = ends[index].num_kept if index in ends else count
            kept += self.token_ids[start : start + num_kept]
            start += count
            counts[index] = num_kept
        self.token_ids, self.counts = kept, counts


def _by_sequence(
    step: SchedulerOutput, indices: list[int], logprobs: Mapping[int, TokenLogprobs]
) -> dict[int, tuple[TokenLogprobs, ...]]:
    """Return the logprobs of each of these sequences, by its place in `indices`."""
    first_rows, row = {}, 0
    for index in np.flatnonzero(step.is_sampled).tolist():
        num_rows = 1 + len(step.drafts.get(index, ()))
        first_rows[index] = range(row, row + num_rows)
        row += num_rows
    return {
        place: tuple(logprobs[row] for row in first_rows[index] if row in logprobs)
        for place, index in enumerate(indices)
        if first_rows[index].start in logprobs
    }


class Progress(NamedTuple):
    """The text that a token adds, and why the sequence ends with it, if it does."""

    text: str
    end: TokenEnd | None


def progress(sequence: Sequence, token_id: int, end: TokenEnd | None) -> Progress:
    """Add the text of the next output token. `end` is what `StopChecker.check` returned for it."""
    detokenizer, params = sequence.detokenizer, sequence.sampling_params
    assert detokenizer is not None, sequence.request_id
    if end is not None and end.finish_reason is FinishReason.ERROR:
        return Progress("", end)
    if end is not None and end.is_stop_token:
        text = detokenizer.append(token_id).text if params.include_stop_str_in_output else ""
        return Progress(text + detokenizer.flush(), end)
    text, stop = detokenizer.append(token_id)
    if stop is not None:
        return Progress(text, TokenEnd(FinishReason.STOP, stop))
    return Progress(text + detokenizer.flush() if end is not None else text, end)


class OutputProcessor:
    """Makes the outputs of one engine's steps. To be called by one thread, in the order of the steps.

    Args:
        on_end: called for a sequence that ends because of its text: a stop string, or an error.
    """

    def __init__(self, on_end: Callable[[Sequence, FinishReason], None]) -> None:
        self._on_end = on_end
        self.num_tokens = 0
        """Tokens of all outputs so far."""

    def process(self, tokens: StepTokens) -> StepOutput:
        """Return the output of a step."""
        looked_up: list[str | None] = []
        if tokens.counts is None:
            detokenizers = cast(
                "list[IncrementalDetokenizer]", [each.detokenizer for each in tokens.sequences]
            )
            looked_up = look_up(detokenizers, tokens.token_ids)
            if not tokens.ends and None not in looked_up:
                self.num_tokens += len(tokens)
                return _output(tokens, [1] * len(tokens), cast("list[str]", looked_up))
        return self._process_each(tokens, looked_up)

    def _process_each(self, tokens: StepTokens, looked_up: list[str | None]) -> StepOutput:
        """Return the output of a step in which some tokens need more than their text looked up."""
        kept, counts, texts = StepTokens([], [], []), [], []
        start = 0
        for index, sequence in enumerate(tokens.sequences):
            stop = start + (1 if tokens.counts is None else tokens.counts[index])
            new, end = tokens.token_ids[start:stop], tokens.ends.get(index)
            start = stop
            if sequence.has_ended_text:
                continue
            text = looked_up[index] if looked_up and end is None else None
            found, end = ([text], None) if text is not None else _texts(sequence, new, end)
            place = len(kept)
            if end is not None:
                sequence.has_ended_text = True
                kept.ends[place] = end
                if index not in tokens.ends:
                    self._on_end(sequence, end.finish_reason)
            if index in tokens.logprobs:
                kept.logprobs[place] = tokens.logprobs[index]
            kept.sequences.append(sequence)
            kept.offsets.append(tokens.offsets[index])
            kept.token_ids += new[: len(found)]
            counts.append(len(found))
            texts += found
        self.num_tokens += len(kept.token_ids)
        return _output(kept, counts, texts)


def _texts(
    sequence: Sequence, token_ids: list[int], end: TokenEnd | None
) -> tuple[list[str], TokenEnd | None]:
    """Return the texts of the tokens up to the one that ends the sequence, and why it ends it.

    `end` concerns the last token; an error, and an end without tokens, come after it.
    """
    texts: list[str] = []
    comes_after = end is not None and (end.finish_reason is FinishReason.ERROR or not token_ids)
    try:
        for place, token_id in enumerate(token_ids):
            is_last = place == len(token_ids) - 1 and not comes_after
            text, found = progress(sequence, token_id, end if is_last else None)
            texts.append(text)
            if found is not None:
                return texts, found
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        # An error of the tokenizer, which is a library, ends this sequence and not the whole batch. Not
        # `except Exception`: a panic in its Rust code is a BaseException.
        logger.exception("request %s: its token could not be turned into text", sequence.request_id)
        assert sequence.detokenizer is not None, sequence.request_id
        sequence.detokenizer.texts = NO_TEXTS
        reason = f"The tokenizer failed on the generated tokens ({type(error).__name__})."
        return texts, TokenEnd(FinishReason.ERROR, reason)
    return texts, end


def _output(tokens: StepTokens, counts: list[int], texts: list[str]) -> StepOutput:
    sequences = tokens.sequences
    output = StepOutput(
        request_ids=[sequence.request_id for sequence in sequences],
        choices=[sequence.choice for sequence in sequences],
        offsets=tokens.offsets,
        counts=counts,
        token_ids=tokens.token_ids,
        texts=texts,
        num_cached_tokens=[sequence.num_cached_tokens for sequence in sequences],
        ends={index: (end.finish_reason, end.stop_reason) for index, end in tokens.ends.items()},
    )
    output.logprobs = {index: found[: counts[index]] for index, found in tokens.logprobs.items()}
    if 0 in tokens.offsets:
        for index, sequence in enumerate(sequences):
            if sequence.prompt_logprobs and tokens.offsets[index] == 0 and counts[index]:
                output.prompt_logprobs[index] = tuple(sequence.prompt_logprobs)
    return output
