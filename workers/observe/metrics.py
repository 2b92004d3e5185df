"""Metrics: a worker's Prometheus metrics of its jobs and steps, with vLLM's names and meanings.

The engine's thread only appends to a queue; another thread adds the queued steps to the metrics.
``docs/metrics.md`` lists all metrics.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from pagefleet.api.contract.keys import LANES, Lane
from pagefleet.api.contract.messages import JobState
from pagefleet.api.protocol.job_record import JobRecord
from pagefleet.engine.core.scheduler_output import SchedulerOutput
from pagefleet.engine.outputs import StepOutput
from pagefleet.workers.job.active_job import ActiveJob
from pagefleet.workers.observe import buckets
from pagefleet.workers.observe.interval_histogram import IntervalHistogram
from pagefleet.workers.observe.recent_stats import RecentStats

FOLD_INTERVAL_S: Final = 0.25
FINISH_REASONS: Final = ("stop", "length", "cancelled", "deadline", "error")
_LABELS: Final = ("model", "lane")


class _Step(NamedTuple):
    started_at: float
    ended_at: float
    step: SchedulerOutput


class _Output(NamedTuple):
    ended_at: float
    output: StepOutput


class Metrics(Collector):
    """The metrics of one worker, in a separate registry.

    Args:
        model: the model's canonical name, the value of the label ``model``.
    """

    def __init__(self, model: str) -> None:
        self.model = model
        self.registry = CollectorRegistry()
        self.recent = RecentStats()
        self._steps: deque[_Step | _Output] = deque()
        self._jobs: dict[str, ActiveJob] = {}
        self._folding = threading.Lock()
        # Registered first, so that a scrape adds the latest steps before it reads the other metrics.
        self.registry.register(self)
        ProcessCollector(registry=self.registry)
        self._make_step_metrics()
        self._make_request_metrics()
        self._make_fleet_metrics()
        for lane in LANES:
            self._begin_at_zero(lane)

    # Events, reported by the other parts of the worker.

    def on_step(self, started_at: float, step: SchedulerOutput) -> None:
        """Called in the engine's thread, so it only appends."""
        self._steps.append(_Step(started_at, time.monotonic(), step))

    def on_output(self, output: StepOutput, ended_at: float) -> None:
        """The output of a step that ended then. Called in the publisher's thread, so it only appends."""
        self._steps.append(_Output(ended_at, output))

    def on_claimed(self, job: ActiveJob) -> None:
        if job.times.taken_over:
            self._takeovers.labels(self.model, job.message.lane).inc()

    def on_started(self, job: ActiveJob) -> None:
        """The job is about to be added to the engine."""
        self._jobs[job.request_id] = job

    def on_attempt_ended(self, job: ActiveJob) -> None:
        """The attempt has ended, for any reason. Its times are complete when this returns."""
        if job.request_id in self._jobs:
            self.fold()
            self._jobs.pop(job.request_id, None)

    def on_closed(self, record: JobRecord, lane: Lane, job: ActiveJob | None) -> None:
        """A job is closed. ``job`` is its last attempt; None if another worker ran it."""
        labels = (self.model, lane)
        reason = record.ended_by
        self._finished.labels(*labels, reason if reason in FINISH_REASONS else "error").inc()
        self._num_generated.labels(*labels).observe(sum(record.num_tokens))
        if record.num_prompt_tokens is not None:
            self._num_prompt.labels(*labels).observe(record.num_prompt_tokens)
        if (seconds := record.seconds_open) is not None:
            self._e2e.labels(*labels).observe(seconds)
        if job is not None and (decode_s := job.times.decode_s) is not None:
            self._decode_time.labels(*labels).observe(decode_s)
        if record.state is JobState.DEAD:
            self.on_dead_letter()

    def on_fenced(self, reason: str) -> None:
        self._fenced_writes.labels(self.model, reason).inc()

    def on_dead_letter(self) -> None:
        self._dead_letters.labels(self.model).inc()

    def on_published(self, latency_s: float) -> None:
        self._publish_latency.observe(latency_s)

    # From queued steps to metrics.

    def collect(self) -> Iterable[Metric]:
        """Add the latest steps. This collector has no metrics itself; the others in the registry do."""
        self.fold()
        return ()

    def fold(self) -> None:
        """Add the queued steps to the metrics. Called in any thread except the engine's."""
        with self._folding:
            while self._steps:
                each = self._steps.popleft()
                if isinstance(each, _Step):
                    self._fold_step(each)
                else:
                    self._fold_output(each.ended_at, each.output)

    def _fold_step(self, each: _Step) -> None:
        step = each.step
        self._step_time.observe(each.ended_at - each.started_at)
        self._step_tokens.observe(step.num_tokens)
        self._step_num_seqs.observe(len(step))
        for sequence in step.first_prefills:
            job = self._jobs.get(sequence.request_id)
            if job is not None and job.times.scheduled_at is None:
                job.times.scheduled_at = each.started_at

    def _fold_output(self, ended_at: float, output: StepOutput) -> None:
        num_tokens = dict.fromkeys(LANES, 0)
        # Most jobs got their last token in the same step, so that few times are different.
        since: dict[tuple[Lane, float], int] = {}
        for request_id, choice, count in zip(output.request_ids, output.choices, output.counts, strict=True):
            job = self._jobs.get(request_id)
            if job is None or not count:
                continue
            times, lane = job.times, job.message.lane
            num_tokens[lane] += count
            last_token_at = times.last_token_at.get(choice)
            times.last_token_at[choice] = ended_at
            if times.first_token_at is None:
                times.first_token_at = ended_at
                self._count_first_token(job)
            elif last_token_at is not None:
                key = (lane, last_token_at)
                since[key] = since.get(key, 0) + 1
        for lane, count in num_tokens.items():
            if count:
                self._generation_tokens.labels(self.model, lane).inc(count)
                self.recent.add_tokens(count, ended_at)
        for (lane, last_token_at), count in since.items():
            self._inter_token.observe((self.model, lane), ended_at - last_token_at, count)

    def _count_first_token(self, job: ActiveJob) -> None:
        """Observe the times up to the first token. For a resumed job, only the prompt tokens are counted."""
        labels, times = (self.model, job.message.lane), job.times
        self._prompt_tokens.labels(*labels).inc(job.num_prompt_tokens)
        for histogram, seconds in (
            (self._queue_time, times.queue_s),
            (self._prefill_time, times.prefill_s),
            (self._first_token, times.first_token_s),
        ):
            if seconds is not None:
                histogram.labels(*labels).observe(seconds)
        if times.first_token_s is not None and times.first_token_at is not None:
            self.recent.add_first_token(times.first_token_s, times.first_token_at)

    # Definitions.

    def _make_step_metrics(self) -> None:
        self._step_time = self._histogram(
            "step_time_seconds",
            "Duration of a step, from its scheduling to its tokens.",
            buckets.STEP_S,
            ("model",),
        ).labels(self.model)
        self._step_tokens = self._histogram(
            "iteration_tokens", "Tokens computed in a step.", buckets.TOKENS, ("model",)
        ).labels(self.model)
        self._step_num_seqs = self._histogram(
            "step_num_seqs", "Sequences in a step: the batch size.", buckets.NUM_SEQS, ("model",)
        ).labels(self.model)
        self._inter_token = IntervalHistogram(
            "pagefleet_inter_token_latency_seconds",
            "Time between two tokens of a job.",
            _LABELS,
            buckets.TOKEN_S,
        )
        self.registry.register(self._inter_token)
        self._prompt_tokens = self._counter(
            "prompt_tokens", "Prompt tokens of jobs that got their first token here, including cached ones."
        )
        self._generation_tokens = self._counter("generation_tokens", "Tokens generated.")

    def _make_request_metrics(self) -> None:
        self._finished = self._counter(
            "request_success", "Ended jobs, by finish reason.", (*_LABELS, "finished_reason")
        )
        self._first_token = self._histogram(
            "time_to_first_token_seconds", "Time from submit to the first token.", buckets.FIRST_TOKEN_S
        )
        self._e2e = self._histogram(
            "e2e_request_latency_seconds", "Time from submit to the end of the job.", buckets.REQUEST_S
        )
        self._queue_time = self._histogram(
            "request_queue_time_seconds", "Time from submit to the first step.", buckets.REQUEST_S
        )
        self._prefill_time = self._histogram(
            "request_prefill_time_seconds", "Time from the first step to the first token.", buckets.REQUEST_S
        )
        self._decode_time = self._histogram(
            "request_decode_time_seconds",
            "Time from the first token of an attempt to its last.",
            buckets.REQUEST_S,
        )
        self._num_prompt = self._histogram("request_prompt_tokens", "Prompt tokens of a job.", buckets.TOKENS)
        self._num_generated = self._histogram(
            "request_generation_tokens", "Generated tokens of a job.", buckets.TOKENS
        )

    def _make_fleet_metrics(self) -> None:
        self._takeovers = self._counter("takeovers", "Jobs taken over from a worker that died.")
        self._fenced_writes = self._counter(
            "fenced_writes",
            "Writes rejected because the job no longer belonged to this worker.",
            ("model", "reason"),
        )
        self._dead_letters = self._counter("dead_letters", "Jobs that became dead letters.", ("model",))
        self._publish_latency = self._histogram(
            "publish_latency_seconds",
            "Time from the end of a step until Redis has its tokens.",
            buckets.STEP_S,
            ("model",),
        ).labels(self.model)

    def _begin_at_zero(self, lane: str) -> None:
        """Create all series now: Prometheus computes no rate for the event that creates a series."""
        labels = (self.model, lane)
        self._inter_token.add(labels)
        for metric in (
            self._prompt_tokens, self._generation_tokens, self._takeovers, self._first_token, self._e2e,
            self._queue_time, self._prefill_time, self._decode_time, self._num_prompt, self._num_generated,
        ):  # fmt: skip
            metric.labels(*labels)
        for reason in FINISH_REASONS:
            self._finished.labels(*labels, reason)
        self._fenced_writes.labels(self.model, "fenced")
        self._dead_letters.labels(self.model)

    def _counter(self, name: str, documentation: str, labels: Sequence[str] = _LABELS) -> Counter:
        return Counter(f"pagefleet_{name}", documentation, labels, registry=self.registry)

    def _histogram(
        self, name: str, documentation: str, bounds: Sequence[float], labels: Sequence[str] = _LABELS
    ) -> Histogram:
        return Histogram(f"pagefleet_{name}", documentation, labels, buckets=bounds, registry=self.registry)
