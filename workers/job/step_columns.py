"""Turns an engine's outputs into columns."""

from __future__ import annotations

from collections.abc import Sequence

from pagefleet.engine.outputs import SequenceOutput, StepOutput


def step_columns(outputs: Sequence[SequenceOutput]) -> StepOutput:
    """Return the outputs of one step as columns."""
    return StepOutput(
        [output.request_id for output in outputs],
        [output.choice for output in outputs],
        [output.offset for output in outputs],
        [len(output.token_ids) for output in outputs],
        [token_id for output in outputs for token_id in output.token_ids],
        [text for output in outputs for text in output.texts],
        [output.num_cached_tokens for output in outputs],
        {
            index: (output.finish_reason, output.stop_reason)
            for index, output in enumerate(outputs)
            if output.finish_reason is not None
        },
        {index: output.logprobs for index, output in enumerate(outputs) if output.logprobs},
        {index: output.prompt_logprobs for index, output in enumerate(outputs) if output.prompt_logprobs},
    )
