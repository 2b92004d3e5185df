"""LLMEngine: requests in, tokens and text out, one step at a time.

Knows nothing of queues, jobs or the environment. Not thread-safe: one thread adds, aborts and steps.
"""

from __future__ import annotations

import logging
import time

from pagefleet.engine.config import EngineConfig
from pagefleet.engine.core.block_manager import BlockManager
from pagefleet.engine.core.scheduler import Scheduler
from pagefleet.engine.core.scheduler_output import SchedulerOutput
from pagefleet.engine.core.sequence import Sequence, SequenceStatus
from pagefleet.engine.core.sequence_factory import SequenceFactory
from pagefleet.engine.core.step_budget import StepBudget, StepCost
from pagefleet.engine.core.stop_checker import Progress, StopChecker, failed
from pagefleet.engine.engine_request import EngineRequest
from pagefleet.engine.errors import EngineAsleepError, EngineFailedError, InvalidRequestError
from pagefleet.engine.execution.executor import LoadedModel, Report
from pagefleet.engine.execution.step_tracer import StepTracer
from pagefleet.engine.model_info import ModelInfo
from pagefleet.engine.outputs import EngineStats, FinishReason, Sampled, SequenceOutput, TokenLogprobs
from pagefleet.engine.structured.grammar import Grammar, GrammarCompiler
from pagefleet.engine.structured.structured_output import StructuredOutput
from pagefleet.engine.text.tokenizer import Tokenizer

__all__ = ["EngineRequest", "LLMEngine"]

logger = logging.getLogger(__name__)


class LLMEngine:
    """A batch that requests join and leave between steps.

    engine.add_request(EngineRequest("a", token_ids, SamplingParams()))
    while engine.has_unfinished_requests:
        for output in engine.step():
            ...
    """

    def __init__(self, loaded: LoadedModel, config: EngineConfig) -> None:
        info = loaded.info
        self.trace = StepTracer(config.trace_file, config.trace_steps)
        self._executor = loaded.executor
        self._executor.trace = self.trace
        self._tokenizer = loaded.tokenizer
        self._info = info
        self._block_manager = BlockManager(info.num_blocks, info.block_size, config.enable_prefix_caching)
        most = config.max_num_batched_tokens or loaded.max_num_batched_tokens
        self._budget = StepBudget(most, config.max_step_s, loaded.token_s)
        # Without a limit on the time, `max_num_batched_tokens` counts tokens and nothing else.
        self._cost = StepCost(loaded.context_weight if config.max_step_s is not None else 0.0)
        self._scheduler = Scheduler(
            self._block_manager,
            config.max_num_seqs,
            self._budget.num_tokens,
            config.num_speculative_tokens,
            self._cost,
        )
        self._stop_checker = StopChecker(info.eos_token_ids, info.max_model_len, info.vocab_size)
        self._sequence_factory = SequenceFactory(
            self._tokenizer, info, self._stop_checker, speculates=config.num_speculative_tokens > 0
        )
        self._grammars = GrammarCompiler(self._tokenizer, info.vocab_size, info.eos_token_ids)
        # The choices of each request that go on.
        self._sequences: dict[str, list[Sequence]] = {}
        # Choices whose log had ended before they came; the next step says so.
        self._ended_at_add: dict[str, list[SequenceOutput]] = {}
        self._is_asleep = False
        self._num_steps = 0
        self._num_generation_tokens = 0
        self._last_step_num_seqs = 0

    @classmethod
    def from_config(cls, config: EngineConfig, report: Report | None = None) -> LLMEngine:
        """Load the model and build its engine; `report` is told of each stage.

        Raises ModelLoadError, UnknownModelError, UnsafeCheckpointError or MissingDependencyError.
        """
        # Imported here: only an engine with a model pays for importing torch.
        if config.backend == "null":
            from pagefleet.engine.loading.null_loader import load
        else:
            from pagefleet.engine.loading.loader import load
        return cls(load(config, report), config)

    @property
    def info(self) -> ModelInfo:
        return self._info

    @property
    def tokenizer(self) -> Tokenizer:
        return self._tokenizer

    @property
    def has_unfinished_requests(self) -> bool:
        return bool(self._sequences or self._ended_at_add)

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no sequence uses right now."""
        return self._block_manager.num_free_blocks

    def num_required_blocks(self, num_tokens: int) -> int:
        """Blocks that so many tokens take, without prefix hits."""
        return self._block_manager.num_required_blocks(num_tokens)

    @property
    def token_budget(self) -> int:
        """What the next step may cost, in tokens: `max_num_batched_tokens` or less.

        Setting it between steps limits all later steps; `max_step_s` may keep the budget below that. Raise
        ValueError below 1.
        """
        return self._scheduler.token_budget

    @token_budget.setter
    def token_budget(self, value: int) -> None:
        self._budget.limit(value)
        self._scheduler.token_budget = self._budget.num_tokens

    def prepare_grammars(self) -> None:
        """Do now what the first grammar would wait for: a second for 50,000 tokens, in which no other thread
        runs. Raises MissingDependencyError."""
        self._grammars.prepare()

    def compile_grammar(self, wanted: StructuredOutput) -> Grammar:
        """What an EngineRequest takes as `grammar`. From any thread; others run meanwhile.

        Raises InvalidRequestError with code `invalid_grammar` where it is malformed, impossible, or asks for
        what can't be kept; MissingDependencyError.
        """
        return self._grammars.compile(wanted)

    def add_request(self, request: EngineRequest) -> None:
        """Put a request in line; it joins the batch at a later step.

        Its logs are replayed through the detokenizer and computed again with the prompt. A log that already
        ends its choice makes the next step return one output, without tokens, that says why.

        Raises InvalidRequestError, and leaves the engine as it was, with code `empty_prompt`,
        `context_length`, `token_out_of_vocabulary`, `invalid_type`, `invalid_value`, `duplicate_request` or
        `exceeds_capacity`.
        """
        request_id = request.request_id
        if request_id in self._sequences or request_id in self._ended_at_add:
            raise InvalidRequestError(
                f"The request {request_id!r} is already in the engine.", "duplicate_request", "request_id"
            )
        made = self._sequence_factory.make(request)
        running = [new.sequence for new in made if new.ended is None]
        for sequence in running:
            num_prompt_tokens = sequence.num_prompt_tokens
            self._scheduler.add(sequence, self._sequence_factory.max_num_tokens(request, num_prompt_tokens))
        if running:
            self._sequences[request_id] = running
        if len(running) < len(made):
            self._ended_at_add[request_id] = [
                _output(new.sequence, [], new.ended) for new in made if new.ended is not None
            ]

    def abort(self, request_id: str) -> bool:
        """Drop a request, in whatever state, between any two calls; its blocks are free at once.

        Returns whether the engine had it. No output of it comes any more.
        """
        ended = self._ended_at_add.pop(request_id, None)
        running = self._sequences.pop(request_id, None)
        for sequence in running or ():
            self._scheduler.abort(sequence)
        return ended is not None or running is not None

    def step(self) -> list[SequenceOutput]:
        """Advance the batch by one step: one output for each sequence that got a token or ended."""
        return self.execute(self.schedule())

    def schedule(self) -> SchedulerOutput:
        """Decide the next step; `execute` does it. Requests may be aborted between the two.

        Raises EngineAsleepError between `sleep` and `wake`.
        """
        if self._is_asleep:
            raise EngineAsleepError
        with self.trace.span("schedule"):
            return self._scheduler.schedule()

    def execute(self, scheduler_output: SchedulerOutput) -> list[SequenceOutput]:
        """Compute a step that `schedule` decided; outputs in its order.

        What the executor raises is passed on: no sequence has changed then, and stepping again is safe
        (FaultIsolation does it). Raise EngineFailedError if the step was computed and could not be booked.
        """
        step = scheduler_output._replace(
            scheduled=[entry for entry in scheduler_output.scheduled if _is_running(entry.sequence)]
        )
        with self.trace.step(step):
            outputs = self._compute(step)
        ended_at_add = [output for outputs in self._ended_at_add.values() for output in outputs]
        self._ended_at_add.clear()
        return ended_at_add + outputs

    def has_lost_device(self, error: Exception) -> bool:
        """Return whether no step can be computed any more, because `execute` raised `error`."""
        return self._executor.has_lost_device(error)

    def fail(self, sequence: Sequence, sentence: str) -> SequenceOutput:
        """End a sequence that is in the engine; return its last output, which has no token."""
        self._finish(sequence, FinishReason.ERROR)
        return _output(sequence, [], failed(sentence))

    def stats(self) -> EngineStats:
        scheduler = self._scheduler
        return EngineStats(
            num_running=scheduler.num_running,
            num_waiting=scheduler.num_waiting,
            num_free_blocks=self._block_manager.num_free_blocks,
            num_blocks=self._block_manager.num_blocks,
            kv_waste=scheduler.kv_waste,
            num_steps=self._num_steps,
            num_generation_tokens=self._num_generation_tokens,
            num_prompt_tokens_computed=scheduler.num_prompt_tokens_computed,
            prefix_cache_queries=scheduler.prefix_cache_queries,
            prefix_cache_hits=scheduler.prefix_cache_hits,
            num_preemptions=scheduler.num_preemptions,
            num_draft_tokens=scheduler.num_draft_tokens,
            num_accepted_tokens=scheduler.num_accepted_tokens,
            last_step_num_seqs=self._last_step_num_seqs,
        )

    def check_integrity(self) -> None:
        """Assert that the books of blocks and sequences balance, between steps."""
        self._scheduler.check_integrity()
        num_sequences = sum(map(len, self._sequences.values()))
        assert num_sequences == self._scheduler.num_running + self._scheduler.num_waiting
        assert all(self._sequences.values())

    @property
    def is_asleep(self) -> bool:
        return self._is_asleep

    def sleep(self) -> None:
        """Give the memory of weights and KV cache back until `wake`, between two steps.

        Requests keep their place and may still come and go; those that ran are computed again afterwards and
        go on with the same tokens. What the prefix cache held is lost.
        """
        if not self._is_asleep:
            self._scheduler.suspend()
            self._executor.sleep()
            self._is_asleep = True

    def wake(self) -> None:
        """Load the weights again. Raises ModelLoadError, and sleeps on, where they are not there any more."""
        if self._is_asleep:
            self._executor.wake()
            self._is_asleep = False

    def close(self) -> None:
        """Give the model's memory back. The engine can't be used any more."""
        self.trace.close()
        self._executor.close()

    def _compute(self, step: SchedulerOutput) -> list[SequenceOutput]:
        if not step.scheduled:
            self._last_step_num_seqs = 0
            return []
        begun_at = time.monotonic()
        sampled = self._executor.execute(step.scheduled)
        cost = sum(
            self._cost.of(num_new_tokens, sequence.num_computed_tokens) if num_new_tokens > 1 else 1
            for sequence, num_new_tokens in step.scheduled
        )
        self._budget.observe(cost, time.monotonic() - begun_at)
        self._scheduler.token_budget = self._budget.num_tokens
        with self.trace.span("advance"):
            try:
                outputs = self._book(step, sampled)
            except Exception as error:
                raise EngineFailedError(
                    f"A step could not be booked: {error!r}",
                    [entry.sequence.request_id for entry in step.scheduled],
                ) from error
        self._num_steps += 1
        self._last_step_num_seqs = len(outputs)
        self._num_generation_tokens += sum(len(output.token_ids) for output in outputs)
        return outputs

    def _book(self, step: SchedulerOutput, sampled: list[Sampled]) -> list[SequenceOutput]:
        for entry, found in zip(step.scheduled, sampled, strict=True):
            _note_prompt_logprobs(entry.sequence, found)
        self._scheduler.update(step, [found.token_ids for found in sampled])
        return [
            self._advance(entry.sequence, found)
            for entry, found in zip(step.scheduled, sampled, strict=True)
            if found.token_ids
        ]

    def _advance(self, sequence: Sequence, found: Sampled) -> SequenceOutput:
        """Turn the tokens just found into an output, and end the sequence where one was its last."""
        num_tokens = sequence.num_tokens - len(found.token_ids)
        texts: list[str] = []
        for token_id in found.token_ids:
            progress = self._progress(sequence, token_id, num_tokens + 1)
            if progress.finish_reason is not FinishReason.ERROR:
                num_tokens += 1
                texts.append(progress.text)
            if progress.finish_reason is not None:
                self._finish(sequence, progress.finish_reason)
                break
        del sequence.token_ids[num_tokens:]
        return _output(sequence, texts, progress, found.logprobs[: len(texts)])

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        self._scheduler.finish(sequence, reason)
        choices = self._sequences[sequence.request_id]
        choices.remove(sequence)
        if not choices:
            del self._sequences[sequence.request_id]

    def _progress(self, sequence: Sequence, token_id: int, num_tokens: int) -> Progress:
        if not 0 <= token_id < self._info.vocab_size:
            return failed(
                "No token could be chosen: the model's logits are not numbers, or the request allows none."
            )
        try:
            return self._stop_checker.check(sequence, num_tokens)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            # The tokenizer is not ours: what it throws at one sequence's tokens is no reason to
            # take the others of the batch down. A panic of its Rust code is no Exception.
            logger.exception("request %s: its token could not be turned into text", sequence.request_id)
            return failed(f"The tokenizer failed on the generated tokens ({type(error).__name__}).")


def _is_running(sequence: Sequence) -> bool:
    return sequence.status is SequenceStatus.RUNNING


def _note_prompt_logprobs(sequence: Sequence, found: Sampled) -> None:
    """Before the step is booked. Also again: after a preemption the prompt is computed from its beginning."""
    if sequence.prompt_logprobs is not None and found.prompt_logprobs:
        sequence.prompt_logprobs[sequence.num_computed_tokens :] = found.prompt_logprobs


def _output(
    sequence: Sequence, texts: list[str], progress: Progress, logprobs: tuple[TokenLogprobs, ...] = ()
) -> SequenceOutput:
    """`texts` and `logprobs` belong to the last tokens of the sequence."""
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
