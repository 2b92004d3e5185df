"""LLM: offline inference in one process, for notebooks, experiments and tests.

llm = LLM(model="smollm2-135m-instruct")
llm.generate("The capital of France is", SamplingParams(max_tokens=16))[0].text
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeAlias

from pagefleet.engine.config import EngineConfig
from pagefleet.engine.engine_request import EngineRequest
from pagefleet.engine.fault_isolation import FaultIsolation
from pagefleet.engine.llm_engine import LLMEngine
from pagefleet.engine.outputs import FinishReason, SequenceOutput, TokenLogprobs
from pagefleet.engine.sampling.sampling_params import SamplingParams
from pagefleet.engine.structured.structured_output import StructuredOutput

Prompt: TypeAlias = str | Sequence[int]
Conversation: TypeAlias = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class ChoiceOutput:
    """One of the `n` completions of a request."""

    index: int
    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    stop_reason: str | int | None
    logprobs: tuple[TokenLogprobs, ...]
    """One for each token, if the request asks for logprobs."""


@dataclass(frozen=True)
class RequestOutput:
    """A finished request. The properties return the fields of its first choice."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    choices: tuple[ChoiceOutput, ...]
    prompt_logprobs: tuple[TokenLogprobs, ...]
    """Those of the prompt's tokens from the second on, if the request asks for prompt logprobs."""
    num_cached_tokens: int
    """Tokens that the request took from the prefix cache."""

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.choices[0].token_ids

    @property
    def text(self) -> str:
        return self.choices[0].text

    @property
    def finish_reason(self) -> FinishReason:
        return self.choices[0].finish_reason

    @property
    def stop_reason(self) -> str | int | None:
        return self.choices[0].stop_reason

    @property
    def logprobs(self) -> tuple[TokenLogprobs, ...]:
        return self.choices[0].logprobs


class LLM:
    """A loaded model that completes prompts and conversations in batches.

    `options` are the other fields of EngineConfig. Raises what `LLMEngine.from_config` raises. Not
    thread-safe.
    """

    def __init__(self, model: str, dtype: str = "auto", **options: Any) -> None:
        self.config = EngineConfig(model=model, dtype=dtype, **options)
        self.engine = LLMEngine.from_config(self.config)
        self._request_ids = map(str, count())

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        structured_outputs: StructuredOutput | None = None,
    ) -> list[RequestOutput]:
        """Complete each prompt, a text or a list of token ids; return the results in their order.

        Args:
            sampling_params: one for all prompts, or one per prompt. None: what the checkpoint recommends.
            structured_outputs: the format that every result must have.

        Raises InvalidRequestError, before anything is computed, for an invalid prompt or parameter;
        ValueError if the numbers of prompts and of sampling parameters differ.
        """
        token_ids: list[Sequence[int]] = [self._token_ids(prompt) for prompt in _as_batch(prompts)]
        return self._run(token_ids, sampling_params, structured_outputs)

    def chat(
        self,
        conversations: Conversation | Sequence[Conversation],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        structured_outputs: StructuredOutput | None = None,
    ) -> list[RequestOutput]:
        """Answer each conversation, a list of messages {"role": ..., "content": ...}; else like
        `generate`."""
        single = not conversations or isinstance(conversations[0], Mapping)
        batch: Any = [conversations] if single else conversations
        token_ids: list[Sequence[int]] = [self.engine.tokenizer.apply_chat_template(chat) for chat in batch]
        return self._run(token_ids, sampling_params, structured_outputs)

    def close(self) -> None:
        """Free the model's memory. The object cannot be used any more."""
        self.engine.close()

    def _token_ids(self, prompt: Prompt) -> Sequence[int]:
        return self.engine.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt

    def _run(
        self,
        prompts: list[Sequence[int]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        wanted: StructuredOutput | None,
    ) -> list[RequestOutput]:
        if sampling_params is None:
            sampling_params = SamplingParams(**self.engine.info.default_sampling)
        params = _params_for(prompts, sampling_params)
        requests = [
            EngineRequest(
                next(self._request_ids),
                tuple(prompt),
                one,
                grammar=self.engine.compile_grammar(wanted) if wanted is not None else None,
            )
            for prompt, one in zip(prompts, params, strict=True)
        ]
        added: dict[str, list[SequenceOutput]] = {}
        try:
            for request in requests:
                self.engine.add_request(request)
                added[request.request_id] = []
            steps = FaultIsolation(self.engine)
            while self.engine.has_unfinished_requests:
                for output in steps.step():
                    added[output.request_id].append(output)
        except BaseException:
            # After an invalid request or Ctrl-C, no request stays in the engine.
            for request_id in added:
                self.engine.abort(request_id)
            raise
        return [_join(request, added[request.request_id]) for request in requests]


def _as_batch(prompts: Prompt | Sequence[Prompt]) -> Sequence[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    if prompts and isinstance(prompts[0], int):
        return [prompts]  # type: ignore[list-item]
    return prompts  # type: ignore[return-value]


def _params_for(
    prompts: list[Sequence[int]], sampling_params: SamplingParams | Sequence[SamplingParams]
) -> Sequence[SamplingParams]:
    if isinstance(sampling_params, SamplingParams):
        return [sampling_params] * len(prompts)
    if len(sampling_params) != len(prompts):
        raise ValueError(
            f"sampling_params has {len(sampling_params)} entries for {len(prompts)} prompts: "
            "give one per prompt, or a single one for all."
        )
    return sampling_params


def _join(request: EngineRequest, outputs: list[SequenceOutput]) -> RequestOutput:
    choices = [
        [output for output in outputs if output.choice == choice]
        for choice in range(request.sampling_params.n)
    ]
    return RequestOutput(
        request_id=request.request_id,
        prompt_token_ids=tuple(request.prompt_token_ids),
        choices=tuple(map(_join_choice, choices)),
        prompt_logprobs=choices[0][0].prompt_logprobs,
        num_cached_tokens=choices[0][-1].num_cached_tokens,
    )


def _join_choice(outputs: list[SequenceOutput]) -> ChoiceOutput:
    last = outputs[-1]
    assert last.finish_reason is not None
    return ChoiceOutput(
        index=last.choice,
        token_ids=tuple(token_id for output in outputs for token_id in output.token_ids),
        text="".join(output.text for output in outputs),
        finish_reason=last.finish_reason,
        stop_reason=last.stop_reason,
        logprobs=tuple(logprobs for output in outputs for logprobs in output.logprobs),
    )
