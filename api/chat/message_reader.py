"""Read a whole answer: its content, its reasoning and its tool calls."""

from __future__ import annotations

from pagefleet.api.chat.choice_reader import ChoiceReader, joined
from pagefleet.api.contract.chat_message import ChatMessage, Reading
from pagefleet.api.contract.messages import ChoiceResult


def with_message(result: ChoiceResult, reading: Reading, job_id: str) -> ChoiceResult:
    """Return the choice with its text read as a message, and ``finish_reason`` as OpenAI defines it:
    ``tool_calls`` instead of ``stop`` if the model called tools.

    Args:
        job_id: the ids of the calls derive from it, so that all readers of a job see the same ids.
    """
    if result.message is not None:
        return result
    # A text that ended by itself has no call that broke off: an incomplete call is content.
    whole_calls = reading.whole_calls or result.finish_reason == "stop"
    reader = ChoiceReader(reading.model_copy(update={"whole_calls": whole_calls}), job_id, result.index)
    fields = {"content": "", **joined([reader.feed(result.text), reader.end()])}
    return result.model_copy(
        update={
            "message": ChatMessage.model_validate({"role": "assistant", **fields}),
            "finish_reason": reader.finish_reason(result.finish_reason),
        }
    )
