"""RequestPreparation: convert a claimed job's request for the engine, replay its log and hash its blocks.

Requests with a grammar are compiled in separate threads, so that other jobs do not wait for them.
"""

from __future__ import annotations

import functools
import logging
import queue
import threading
import traceback
from collections.abc import Callable
from typing import Final

from pagefleet.api.contract.errors import FleetError, JobFailed
from pagefleet.api.contract.messages import GenerateRequest, ModelCard
from pagefleet.engine import InvalidRequestError, LLMEngine, PreparedRequest
from pagefleet.workers.job.active_job import ActiveJob
from pagefleet.workers.job.output_encoder import OutputEncoder, TokenFieldCache
from pagefleet.workers.observe.job_log import job_fields
from pagefleet.workers.prompting.prompt import echo_text, engine_request, fleet_error
from pagefleet.workers.threads.loop_thread import LoopThread

logger = logging.getLogger(__name__)

_NUM_COMPILERS: Final = 2


class RequestPreparation:
    """Prepares jobs and passes each to exactly one of the callbacks.

    Args:
        on_ready: called with a job, its request, the engine's request and whether it runs alone.
        on_error: called with a job that this model cannot run, and the reason.
    """

    def __init__(
        self,
        engine: LLMEngine,
        card: ModelCard,
        on_ready: Callable[[ActiveJob, GenerateRequest, PreparedRequest, bool], None],
        on_error: Callable[[ActiveJob, FleetError], None],
    ) -> None:
        self._engine = engine
        self._card = card
        self._on_ready = on_ready
        self._on_error = on_error
        self._token_fields = TokenFieldCache(engine.tokenizer)
        self._to_compile: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._compilers = [LoopThread(f"grammar-{n}", self._compile) for n in range(_NUM_COMPILERS)]
        # Jobs whose callback has not been called yet. The thread that removes a job, under the lock, owns it.
        self._uncompiled: set[ActiveJob] = set()
        self._lock = threading.Lock()

    def start(self) -> None:
        for thread in self._compilers:
            thread.start()

    def prepare(self, job: ActiveJob, request: GenerateRequest, *, solo: bool) -> None:
        """Prepare a job now, or queue it if it has a grammar."""
        if request.structured_outputs is None:
            self._prepared(job, request, solo)()
        else:
            self._uncompiled.add(job)
            self._to_compile.put(functools.partial(self._prepare_with_grammar, job, request, solo))

    def stop(self) -> list[ActiveJob]:
        """Stop compiling and return the jobs that were not passed on, in the order of their claims.

        Does not wait for a grammar that is being compiled.
        """
        with self._lock:
            unprepared = sorted(self._uncompiled, key=lambda job: job.serial)
            self._uncompiled.clear()
        for _ in self._compilers:
            self._to_compile.put(None)
        return unprepared

    def _compile(self) -> None:
        while (prepare_job := self._to_compile.get()) is not None:
            prepare_job()

    def _prepare_with_grammar(self, job: ActiveJob, request: GenerateRequest, solo: bool) -> None:
        if job not in self._uncompiled:
            return
        pass_on = self._prepared(job, request, solo)
        with self._lock:
            if job in self._uncompiled:
                self._uncompiled.remove(job)
                pass_on()

    def _prepared(self, job: ActiveJob, request: GenerateRequest, solo: bool) -> Callable[[], None]:
        """Prepare the job. Return the call that passes it on."""
        try:
            computed = engine_request(job.request_id, request, job.choices, self._engine, self._card)
            job.encoder = OutputEncoder(
                self._token_fields, echo_text(request, computed, self._engine.tokenizer)
            )
            prepared = self._engine.prepare(computed)
        except FleetError as error:
            return functools.partial(self._on_error, job, error)
        except InvalidRequestError as error:
            return functools.partial(self._on_error, job, fleet_error(error))
        except Exception as error:  # noqa: BLE001
            # Tokenizers and templates come with the model. Their errors must not end other jobs, and may
            # quote the prompt: log only the type and the place.
            place = "".join(traceback.format_tb(error.__traceback__))
            kind = type(error).__name__
            logger.error(
                "job %s could not be prepared: %s\n%s", job.job_id, kind, place, extra=job_fields(job)
            )
            failure = JobFailed(f"The worker could not prepare this request ({kind}).")
            return functools.partial(self._on_error, job, failure)
        return functools.partial(self._on_ready, job, request, prepared, solo)
