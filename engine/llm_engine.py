"""LLMEngine: accepts requests and generates their tokens and text, one step at a time.

Does not know queues, jobs or environment variables. Not thread-safe: one thread adds, aborts and steps. Only
`prepare`, `compile_grammar` and, after `end_in`, `process` can be called from another thread.
"""

from __future__ import annotations

from collections.abc import Callable

from pagefleet.engine.config import EngineConfig
from pagefleet.engine.core.batch_table import BatchTable
from pagefleet.engine.core.block_manager import BlockManager
from pagefleet.engine.core.scheduler import Scheduler
from pagefleet.engine.core.scheduler_output import SchedulerOutput
from pagefleet.engine.core.sequence import Sequence, SequenceStatus
from pagefleet.engine.core.step_budget import StepBudget, StepCost
from pagefleet.engine.engine_request import EngineRequest
from pagefleet.engine.errors import EngineAsleepError, InvalidRequestError
from pagefleet.engine.execution.executor import Executor, LoadedModel, Report
from pagefleet.engine.execution.overlapped_executor import OverlappedExecutor
from pagefleet.engine.execution.step_pipeline import StepClock, StepPipeline
from pagefleet.engine.execution.step_tracer import StepTracer
from pagefleet.engine.model_info import ModelInfo
from pagefleet.engine.outputs import EngineStats, FinishReason, SequenceOutput, StepOutput
from pagefleet.engine.requests.output_processor import OutputProcessor, StepTokens
from pagefleet.engine.requests.sequence_factory import PreparedRequest, SequenceFactory
from pagefleet.engine.requests.stop_checker import StopChecker, TokenEnd
from pagefleet.engine.structured.grammar import Grammar, GrammarCompiler
from pagefleet.engine.structured.structured_output import StructuredOutput
from pagefleet.engine.text.tokenizer import Tokenizer

__all__ = ["EngineRequest", "LLMEngine"]


class LLMEngine:
    """An inference engine with continuous batching: requests join and leave the batch between steps.

    engine.add_request(EngineRequest("a", token_ids, SamplingParams()))
    while engine.has_unfinished_requests:
        for output in engine.step():
            ...
    """

    def __init__(self, loaded: LoadedModel, config: EngineConfig) -> None:
        info = loaded.info
        self.tracer = StepTracer(config.trace_file, config.trace_steps)
        overlaps = (
            config.overlap_steps if config.overlap_steps is not None else loaded.executor.prefers_overlap
        )
        self._executor = _executor(loaded.executor, overlaps)
        self._executor.tracer = self.tracer
        self._tokenizer = loaded.tokenizer
        self._info = info
        self._block_manager = BlockManager(info.kv_groups, info.block_size, config.enable_prefix_caching)
        max_num_tokens = config.max_num_batched_tokens or loaded.max_num_batched_tokens
        self._budget = budget = StepBudget(max_num_tokens, config.max_step_s, loaded.token_s)
        # Without a time limit, `max_num_batched_tokens` counts tokens, not their cost.
        cost = StepCost(loaded.context_weight if config.max_step_s is not None else 0.0)
        self._scheduler = Scheduler(
            self._block_manager,
            config.max_num_seqs,
            budget.num_tokens,
            config.num_speculative_tokens,
            cost,
            BatchTable(config.max_num_seqs, info.max_model_len, len(info.kv_groups), info.block_size),
        )
        self._stop_checker = StopChecker(info.eos_token_ids, info.max_model_len, info.vocab_size)
        self._sequence_factory = SequenceFactory(
            self._tokenizer,
            info,
            self._stop_checker,
            speculates=config.num_speculative_tokens > 0,
            hashes_blocks=config.enable_prefix_caching,
        )
        self._grammars = GrammarCompiler(self._tokenizer, info.vocab_size, info.eos_token_ids)
        self._pipeline = StepPipeline(
            self._executor,
            self._scheduler,
            self._stop_checker,
            StepClock(self._scheduler, budget, cost),
            max_in_flight=2 if overlaps else 1,
            on_end=self._end,
        )
        self._output_processor = OutputProcessor(self._end)
        # The unfinished choices of each request.
        self._sequences: dict[str, list[Sequence]] = {}
        # Choices that ended without a token, by request: the next step returns their outputs.
        self._ended: dict[str, list[tuple[Sequence, TokenEnd]]] = {}
        self._is_asleep = False

    @classmethod
    def from_config(cls, config: EngineConfig, report: Report | None = None) -> LLMEngine:
        """Load the model and return its engine.

        Args:
            report: called after each stage of loading with its name and its seconds.

        Raises ModelLoadError or a subclass, MissingDependencyError, or ConfigError if the device is not
        available.
        """
        # Imported here: the null backend does not need torch.
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
        """Whether `step` has something to do. A step whose sequences have all ended must still be taken."""
        return bool(self._sequences or self._ended or self._pipeline.num_in_flight)

    @property
    def num_free_blocks(self) -> int:
        """Blocks of the first KV group that no sequence uses; cached blocks count as free."""
        return self._block_manager.num_free_blocks

    def num_required_blocks(self, num_tokens: int) -> int:
        """Return how many blocks of the first KV group `num_tokens` tokens need without prefix cache hits.

        If all layers have a window: how many they need at once."""
        return self._block_manager.num_required_blocks(num_tokens)

    @property
    def token_budget(self) -> int:
        """The largest cost of the next step, in tokens: at most `max_num_batched_tokens`.

        Setting it between steps limits all later steps; `max_step_s` may lower the budget further. Setting a
        value below 1 raises ValueError.
        """
        return self._scheduler.token_budget

    @token_budget.setter
    def token_budget(self, value: int) -> None:
        self._budget.limit(value)
        self._scheduler.token_budget = self._budget.num_tokens

    def prepare_grammars(self) -> None:
        """Prepare the tokenizer for grammars now rather than at the first request with one.

        Takes about a second per 50,000 tokens of vocabulary and holds the GIL meanwhile. Raises
        MissingDependencyError.
        """
        self._grammars.prepare()

    def compile_grammar(self, wanted: StructuredOutput) -> Grammar:
        """Return the `grammar` of an EngineRequest. Can be called from any thread and releases the GIL.

        Raises InvalidRequestError with code `invalid_grammar` if `wanted` is malformed, cannot be satisfied,
        or uses unsupported features; MissingDependencyError.
        """
        return self._grammars.compile(wanted)

    def prepare(self, request: EngineRequest) -> PreparedRequest:
        """Do what takes time before a request is added: check its ids, replay its logs, hash its blocks.

        Can be called from any thread; changes nothing in the engine. Grammars of `request` are copied.

        Raises InvalidRequestError with code `empty_prompt`, `context_length`, `token_out_of_vocabulary`,
        `invalid_type` or `invalid_value`.
        """
        return self._sequence_factory.prepare(request)

    def add_request(self, request: EngineRequest | PreparedRequest, *, is_confirmed: bool = True) -> None:
        """Add a request to the waiting queue; it joins the batch in a later step.

        If it is not confirmed, it is not computed before `confirm`. The first step with room for it has it in
        `SchedulerOutput.unconfirmed`.

        Its logs are replayed through the detokenizer and computed together with the prompt. If a log already
        ends its choice, the next step returns one output for it, without tokens, that has the finish reason.
        A prepared request can be added once, and in a time that does not depend on its length.

        Raises InvalidRequestError with a code of `prepare`, `duplicate_request` or `exceeds_capacity`; the
        engine is unchanged then.
        """
        request_id = request.request_id
        if request_id in self._sequences or request_id in self._ended:
            raise InvalidRequestError(
                f"request_id {request_id!r} is already in use: wait for that request, or choose another id.",
                "duplicate_request",
                "request_id",
            )
        prepared = request if isinstance(request, PreparedRequest) else self.prepare(request)
        running = [new.sequence for new in prepared.choices if new.ended is None]
        for sequence in running:
            sequence.is_confirmed = is_confirmed
            self._scheduler.add(sequence, prepared.max_num_tokens)
        if running:
            self._sequences[request_id] = running
        if len(running) < len(prepared.choices):
            self._ended[request_id] = [
                (new.sequence, new.ended) for new in prepared.choices if new.ended is not None
            ]

    def confirm(self, request_id: str) -> None:
        """Let a request be computed from the next step on. Does nothing if the engine does not have it."""
        for sequence in self._sequences.get(request_id, ()):
            sequence.is_confirmed = True

    def abort(self, request_id: str) -> bool:
        """Drop a request, whether it waits or runs; its blocks are free at once.

        Returns False if the engine does not have the request. No later step returns output for it.
        """
        ended = self._ended.pop(request_id, None)
        running = self._sequences.pop(request_id, None)
        for sequence in running or ():
            self._scheduler.abort(sequence)
        return ended is not None or running is not None

    def step(self) -> list[SequenceOutput]:
        """Advance the batch by one step; return one output for each sequence that got a token or ended.

        If steps overlap, this starts a step and returns the outputs of the one before."""
        step = self.schedule()
        if len(step):
            self.submit(step)
            if not self.must_take:
                return []
        return self.outputs(self.take())

    def schedule(self) -> SchedulerOutput:
        """Return the next step, to be submitted. Requests may be aborted between the two.

        It has no sequence if none can be computed before `take` was called. Raises EngineAsleepError between
        `sleep` and `wake`.
        """
        if self._is_asleep:
            raise EngineAsleepError
        with self.tracer.span("schedule"):
            return self._scheduler.schedule()

    def reschedule(self, step: SchedulerOutput) -> SchedulerOutput:
        """Return the next step instead of one that was not submitted, because requests were confirmed."""
        with self.tracer.span("schedule"):
            return self._scheduler.reschedule(step)

    def submit(self, step: SchedulerOutput) -> None:
        """Start to compute a step that `schedule` returned, without the sequences that ended since."""
        self._pipeline.submit(step)

    @property
    def num_in_flight(self) -> int:
        """Steps that were submitted and not taken."""
        return self._pipeline.num_in_flight

    @property
    def oldest_step(self) -> SchedulerOutput | None:
        """The step that `take` waits for; None without one."""
        return self._pipeline.oldest_step

    @property
    def must_take(self) -> bool:
        """Whether the oldest step must be taken before the next one is submitted."""
        return self._pipeline.is_full

    def take(self) -> StepTokens:
        """Wait for the oldest step in flight and return its tokens, for `outputs`; without one, return those
        of requests that ended without a token.

        An exception of the executor is passed on: all steps in flight are forgotten, no sequence has changed,
        and the steps can be computed again (FaultIsolation does that). Raises EngineFailedError if the step
        was computed but its results could not be processed.
        """
        tokens = self._pipeline.take() if self._pipeline.num_in_flight else StepTokens([], [], [])
        if not self._ended:
            return tokens
        ended = [each for ended in self._ended.values() for each in ended]
        self._ended.clear()
        return StepTokens.ended(ended) + tokens

    def outputs(self, tokens: StepTokens) -> list[SequenceOutput]:
        """Return the outputs of a step that `take` returned."""
        return list(self.process(tokens).sequence_outputs())

    def process(self, tokens: StepTokens) -> StepOutput:
        """Return the output of a step that `take` returned, as columns. Call it for each step in order.

        Another thread may call it, if `end_in` was set."""
        with self.tracer.span("output"):
            return self._output_processor.process(tokens)

    def end_in(self, post: Callable[[str, Callable[[], None]], None]) -> None:
        """Let `process` run in another thread.

        For each sequence that it ends, `post` gets the request's id and a call that the engine's thread must
        make.
        """
        end = self._end
        self._output_processor = OutputProcessor(
            lambda sequence, reason: post(sequence.request_id, lambda: end(sequence, reason))
        )

    def execute(self, step: SchedulerOutput) -> list[SequenceOutput]:
        """Compute a step that `schedule` returned; return the outputs of its sequences. No other step may be
        in flight. Raises like `take`."""
        self.submit(step)
        return self.outputs(self.take())

    def has_lost_device(self, error: Exception) -> bool:
        """Return whether no step can be computed any more, because `execute` raised `error`."""
        return self._executor.has_lost_device(error)

    def fail(self, sequence: Sequence, message: str) -> None:
        """End an unfinished sequence with an error; the next `take` returns that."""
        self._end(sequence, FinishReason.ERROR)
        end = TokenEnd(FinishReason.ERROR, message)
        self._ended.setdefault(sequence.request_id, []).append((sequence, end))

    def stats(self) -> EngineStats:
        scheduler = self._scheduler
        return EngineStats(
            num_running=scheduler.num_running,
            num_waiting=scheduler.num_waiting,
            num_free_blocks=self._block_manager.num_free_blocks,
            num_blocks=self._block_manager.num_blocks,
            kv_groups=self._block_manager.stats(),
            kv_waste=scheduler.kv_waste,
            num_steps=self._pipeline.num_steps,
            num_generation_tokens=self._output_processor.num_tokens,
            num_prompt_tokens_computed=scheduler.bookings.num_prompt_tokens_computed,
            prefix_cache_queries=scheduler.prefix_cache_queries,
            prefix_cache_hits=scheduler.prefix_cache_hits,
            num_preemptions=scheduler.num_preemptions,
            num_draft_tokens=scheduler.bookings.num_draft_tokens,
            num_accepted_tokens=scheduler.bookings.num_accepted_tokens,
            last_step_num_seqs=self._pipeline.last_num_seqs,
        )

    def check_integrity(self) -> None:
        """Assert the invariants of blocks and sequences that hold between steps."""
        self._scheduler.check_integrity()
        num_sequences = sum(map(len, self._sequences.values()))
        assert num_sequences == self._scheduler.num_running + self._scheduler.num_waiting
        assert all(self._sequences.values())

    @property
    def is_asleep(self) -> bool:
        return self._is_asleep

    def sleep(self) -> None:
        """Free the memory of the weights and the KV cache until `wake`. To be called between two steps.

        Requests keep their order and may still be added and aborted. After `wake`, running requests are
        computed again and continue with the same tokens. The contents of the prefix cache are lost.
        """
        if not self._is_asleep:
            # Their tokens are computed again.
            self._pipeline.forget()
            self._scheduler.preempt_all()
            self._executor.sleep()
            self._is_asleep = True

    def wake(self) -> None:
        """Load the weights again. Raises ModelLoadError, and stays asleep, if the files are gone."""
        if self._is_asleep:
            self._executor.wake()
            self._is_asleep = False

    def close(self) -> None:
        """Free the model's memory. The engine cannot be used any more."""
        self.tracer.close()
        self._executor.close()

    def _end(self, sequence: Sequence, reason: FinishReason) -> None:
        """End a sequence, unless it has ended."""
        if sequence.status is SequenceStatus.FINISHED:
            return
        self._scheduler.finish(sequence, reason)
        choices = self._sequences[sequence.request_id]
        choices.remove(sequence)
        if not choices:
            del self._sequences[sequence.request_id]


def _executor(executor: Executor, overlaps: bool) -> Executor:
    return OverlappedExecutor(executor) if overlaps and not executor.is_asynchronous else executor
