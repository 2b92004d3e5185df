"""RequestPreparation: a job reaches the engine's thread with nothing left to check or compute."""

from __future__ import annotations

from pagefleet.api.contract.errors import InvalidRequest
from pagefleet.api.contract.messages import GenerateRequest
from pagefleet.engine import EngineConfig, LLMEngine, NullOptions
from pagefleet.workers.attempt.preparation import RequestPreparation
from pagefleet.workers.attempt.resumption import new_choices
from pagefleet.workers.job.active_job import ActiveJob
from pagefleet.workers.job.job_times import JobTimes
from pagefleet.workers.prompting.model_card import make_card
from pagefleet.workers.settings import WorkerSettings
from tests.workers.harness import RecordedMessage


class Prepared:
    """Prepares one job with a card that allows more tokens than the engine has."""

    def __init__(self, **fields) -> None:
        self.ready, self.errors = [], []
        config = EngineConfig(model="null", backend="null", null=NullOptions())
        self.engine = LLMEngine.from_config(config)
        card = make_card(WorkerSettings(model="null", backend="null"), self.engine)
        preparation = RequestPreparation(
            self.engine,
            card.model_copy(update={"vocab_size": 1000}),
            on_ready=lambda job, request, prepared, solo: self.ready.append(prepared),
            on_error=lambda job, error: self.errors.append(error),
        )
        request = GenerateRequest.model_validate({"model": "null", **fields})
        job = ActiveJob("a", 1, RecordedMessage("a"), JobTimes(1, False, 0.0))
        job.choices = new_choices(request, [0])
        preparation.prepare(job, request, solo=False)


def test_a_job_is_hashed_before_the_engine_s_thread_sees_it():
    prepared = Prepared(prompt="x" * 99)
    (found,) = prepared.ready
    assert found.request_id.startswith("a")
    assert len(found.choices[0].sequence.block_hashes) == 100 // prepared.engine.info.block_size
    prepared.engine.add_request(found)
    assert prepared.engine.step()


def test_the_engine_s_reason_reaches_the_client():
    prepared = Prepared(prompt_token_ids=[1, 999])
    assert prepared.ready == []
    (error,) = prepared.errors
    assert isinstance(error, InvalidRequest)
    assert error.param == "prompt_token_ids"
    assert "token id 999" in str(error)
