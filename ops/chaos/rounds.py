"""Calm runs first, then rounds with a fault in each; every round is compared and looked at afterwards."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from ops.chaos.books import complaints_at_rest, remove_results, wrong_records
from ops.chaos.faults import FAULTS
from ops.chaos.fleet import ChaosFleet, Resources, sleep_until, wait_all_ended
from ops.chaos.scene import Death, Scene
from ops.chaos.streams import ReaderProcess, StreamLog, Style, Verdict
from ops.chaos.workload import Outcome, Workload, choices_of, null_tokens_are_right

_TIMEOUT_S: Final = {"null": 60.0, "model": 300.0}
_LEASE_S: Final = 3.0
_CLAIM_BAR_S: Final = 4.0
_PREFILL_BAR: Final = 1.5
_SILENT_FAULTS: Final = ("kill", "pause", "wedge")
_STYLES: Final[tuple[Style, ...]] = ("sync", "async")
_THROUGH_GATEWAYS: Final[tuple[Style, ...]] = ("http",)


class CalmRunError(Exception):
    """The fleet does not even work without faults."""


@dataclass(slots=True)
class RoundResult:
    """What one round showed. Silences and claims are seconds, one for each stream."""

    index: int
    fault: str
    style: Style
    seconds: float = 0.0
    num_tokens: int = 0
    lost: int = 0
    doubled: int = 0
    changed: int = 0
    num_solo: int = 0
    """Jobs that start alone in their next attempt, because several suspects were left by one death."""
    num_blamed: int = 0
    """Jobs that were the only suspect of a death."""
    silences_s: list[float] = field(default_factory=list)
    struck_silences_s: list[float] = field(default_factory=list)
    claims_s: list[float] = field(default_factory=list)
    prefills_s: list[float] = field(default_factory=list)
    drains_s: list[float] = field(default_factory=list)
    orphans_s: list[float] = field(default_factory=list)
    reconnects_s: list[float] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    story: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        return not (self.lost or self.doubled or self.changed or self.complaints)


class Suite:
    """One fleet and what it answers when nothing happens to it."""

    def __init__(self, fleet: ChaosFleet, workload: Workload, say: Callable[[str], None]) -> None:
        self._fleet = fleet
        self._workload = workload
        self._say = say
        self._timeout_s = _TIMEOUT_S[fleet.engine]
        # Streams through gateways must equal those of a FleetClient, which makes the calm runs.
        self._styles = _THROUGH_GATEWAYS if fleet.gateways else _STYLES
        self._readers = {style: self._reader(style) for style in {*_STYLES, *self._styles}}
        self._calm: list[list[Outcome]] = []
        self._calm_s = 0.0
        self._prefill_s_a_token = 0.0
        self.baseline = Resources(0, 0, 0.0)

    def close(self) -> None:
        for reader in self._readers.values():
            reader.kill()

    def run_calm(self, num_rounds: int) -> None:
        """Record every set of requests that ``num_rounds`` rounds use. Raises: CalmRunError."""
        for set_index in range(min(self._workload.num_sets, num_rounds)):
            begun_at = time.monotonic()
            logs = self._send(f"calm-{set_index}", set_index, self._readers[_STYLES[set_index % 2]])
            if not wait_all_ended(logs, 4 * self._timeout_s):
                raise CalmRunError(f"not all streams of the calm run ended; logs in {self._fleet.home}")
            self._calm_s = time.monotonic() - begun_at
            self._calm.append([self._outcome(log) for log in logs])
            self._prefill_s_a_token = max(self._prefill_s_a_token, self._measure_prefill(logs))
            requests = self._workload.requests(set_index)
            if self._fleet.engine == "null" and not null_tokens_are_right(requests, self._calm[-1]):
                raise CalmRunError("the null engine's tokens are not the function of seed and position")
            remove_results(self._fleet, [log.job_id for log in logs])
        held = [self._fleet.resources(index) for index in range(len(self._fleet.workers))]
        self.baseline = Resources(*(max(values) for values in zip(*held, strict=True)))
        num_tokens = sum(
            len(each.token_ids) for calm in self._calm for outcome in calm for each in choices_of(outcome)
        )
        self._say(
            f"calm: {len(self._calm)} x {self._workload.num_streams} streams, {num_tokens} tokens, "
            f"{self._calm_s:.1f} s for the last set; a worker has {self.baseline.num_threads} threads and "
            f"{self.baseline.num_connections} connections and prefills a token in "
            f"{self._prefill_s_a_token * 1000:.2f} ms"
        )

    def run_round(self, index: int, fault: str, rng: random.Random) -> RoundResult:
        set_index = index % self._workload.num_sets
        style = rng.choice(self._styles)
        begun_at = time.monotonic()
        self._fleet.wait_ready()
        logs = self._send(f"r{index}-{rng.randrange(10**6)}", set_index, self._readers[style])
        scene = Scene(self._fleet, rng, logs, self._readers[style], self._replace_reader)
        sleep_until(begun_at + rng.uniform(0.05, 0.75) * self._calm_s)
        FAULTS[fault](scene)
        wait_all_ended(logs, self._timeout_s)
        result = RoundResult(index, fault, style, story=scene.story, complaints=scene.complaints)
        result.drains_s, result.orphans_s = scene.drains_s, scene.orphans_s
        self._judge(result, logs, self._calm[set_index])
        self._judge_connections(result, logs, scene)
        self._measure(result, logs, scene)
        self._look_after(result, logs, self._calm[set_index])
        remove_results(self._fleet, [*(log.job_id for log in logs), *scene.orphan_ids])
        result.seconds = time.monotonic() - begun_at
        return result

    def _send(self, prefix: str, set_index: int, reader: ReaderProcess) -> list[StreamLog]:
        requests = self._workload.requests(set_index)
        logs = [StreamLog(f"{prefix}-{number}", fields) for number, fields in enumerate(requests)]
        reader.forget()
        for log in logs:
            log.moments.append(time.monotonic())
            reader.read(log)
        return logs

    def _replace_reader(self, dead: ReaderProcess) -> ReaderProcess:
        self._readers[dead.style] = self._reader(dead.style)
        return self._readers[dead.style]

    def _reader(self, style: Style) -> ReaderProcess:
        return ReaderProcess(style, self._fleet.reader_arguments(style))

    @staticmethod
    def _outcome(log: StreamLog) -> Outcome:
        if log.error is not None:
            raise CalmRunError(f"{log.job_id}: {log.error}")
        return log.outcome()

    def _judge(self, result: RoundResult, logs: list[StreamLog], calm: list[Outcome]) -> None:
        for log, outcome in zip(logs, calm, strict=True):
            verdict: Verdict = log.judge(outcome)
            result.num_tokens += len(log.tokens)
            result.lost += verdict.lost
            result.doubled += verdict.doubled
            result.changed += verdict.changed
            result.complaints += verdict.notes

    @staticmethod
    def _judge_connections(result: RoundResult, logs: list[StreamLog], scene: Scene) -> None:
        """If a worker dies behind a gateway, the gateway's clients must notice nothing but a pause."""
        result.reconnects_s = [value for log in logs for value in log.cuts_s]
        if result.reconnects_s and not scene.num_gateways_killed:
            result.complaints.append(f"{len(result.reconnects_s)} connections broke off")

    def _measure(self, result: RoundResult, logs: list[StreamLog], scene: Scene) -> None:
        rows = self._fleet.hashes([log.job_id for log in logs], "attempts", "claimed_at", "solo", "blame")
        result.num_solo = sum(solo == "1" for _, _, solo, _ in rows.values())
        result.num_blamed = sum(blame is not None for *_, blame in rows.values())
        for log in logs:
            silence_s = log.longest_silence_s
            result.silences_s.append(silence_s)
            # A message that died on its way to a worker was never claimed there: it shows by its silence.
            if int(rows[log.job_id][0] or 0) > 1 or silence_s > _LEASE_S:
                result.struck_silences_s.append(silence_s)
        for death in scene.deaths:
            for job_id, attempts_before in death.attempts.items():
                attempts, claimed_at, *_ = rows[job_id]
                # Claimed a third time by now: the moment of the second claim is written over.
                if attempts and int(attempts) == attempts_before + 1:
                    result.claims_s.append(int(claimed_at) / 1000 - death.at)
            if death.attempts:
                self._measure_takeover(result, logs, death)

    def _measure_prefill(self, logs: list[StreamLog]) -> float:
        """Seconds that one worker needs for a token of a prompt while all prefill: what a takeover costs."""
        last_s = max((log.first_token_at or 0.0) - log.moments[0] for log in logs)
        num_tokens = sum(len(log.fields["prompt_token_ids"]) for log in logs)
        return last_s * len(self._fleet.workers) / num_tokens

    def _measure_takeover(self, result: RoundResult, logs: list[StreamLog], death: Death) -> None:
        """Measure the prefill after a takeover: a stream may be silent for the claim plus this prefill."""
        taken = [log for log in logs if log.job_id in death.attempts]
        num_tokens = sum(len(log.fields["prompt_token_ids"]) + death.num_logged[log.job_id] for log in taken)
        prefill_s = num_tokens * self._prefill_s_a_token
        result.prefills_s.append(prefill_s)
        bar_s = _CLAIM_BAR_S + _PREFILL_BAR * prefill_s
        worst_s = max(log.longest_silence_s for log in taken)
        if self._fleet.engine == "model" and result.fault in _SILENT_FAULTS and worst_s > bar_s:
            result.complaints.append(
                f"a stream was silent for {worst_s:.2f} s; {bar_s:.2f} s were allowed for {num_tokens} tokens"
            )

    def _look_after(self, result: RoundResult, logs: list[StreamLog], calm: list[Outcome]) -> None:
        try:
            self._fleet.wait_ready()
        except TimeoutError as error:
            result.complaints.append(str(error))
        result.complaints += complaints_at_rest(self._fleet, self.baseline)
        expected = {log.job_id: outcome for log, outcome in zip(logs, calm, strict=True)}
        result.complaints += wrong_records(self._fleet, expected)
