"""All other addresses: pagefleet's, and those of OpenAI that the gateway does not have."""

from __future__ import annotations

from typing import Final

from ops.compatibility.probe import Address, Answer, is_not_there


def _not_here(path: str, words: str = "") -> Address:
    return Address("POST", path, "no", is_not_there, words)


def _lists_models(answer: Answer) -> bool:
    return answer.status == 200 and "null" in [each["id"] for each in answer.data["data"]]


def _lists_jobs(answer: Answer) -> bool:
    return answer.status == 200 and answer.data["object"] == "list"


def _is_model(answer: Answer) -> bool:
    return answer.status == 200 and answer.data["object"] == "model"


def _is_ended_job(answer: Answer) -> bool:
    return answer.status == 200 and answer.data["status"] == "completed"


def _streams(answer: Answer) -> bool:
    return answer.status == 200 and answer.data.endswith("data: [DONE]\n\n")


def _is_gone(answer: Answer) -> bool:
    return answer.status == 200 and answer.data["deleted"] is True


def _is_well(answer: Answer) -> bool:
    return answer.status == 200


# The order matters: the job is deleted after it was read.
ADDRESSES: Final = (
    Address(
        "GET",
        "/v1/models",
        "differs",
        _lists_models,
        "`created` is 0; each model also has its context length, aliases and `ready`",
    ),
    Address("GET", "/v1/jobs", "yes", _lists_jobs, "pagefleet's: the newest jobs of the tenant"),
    Address(
        "POST",
        "/v1/jobs/{job}/cancel",
        "yes",
        _is_ended_job,
        "pagefleet's: keeps the tokens generated so far",
    ),
    Address("GET", "/", "yes", _is_well, "pagefleet's: the web page"),
    Address("GET", "/page/main.js", "yes", _is_well, "files of the web page"),
    Address("GET", "/v1/models/null", "differs", _is_model, "accepts the canonical name or an alias"),
    Address(
        "GET",
        "/v1/jobs/{job}",
        "yes",
        _is_ended_job,
        "pagefleet's: the state, and the answer when the job has ended",
    ),
    Address("GET", "/v1/jobs/{job}/stream", "yes", _streams, "pagefleet's: the events after `Last-Event-ID`"),
    Address("DELETE", "/v1/jobs/{job}", "yes", _is_gone, "pagefleet's: cancels the job and removes its data"),
    Address("GET", "/health", "yes", _is_well, "200 while the process runs"),
    Address("GET", "/ready", "yes", _is_well, "200 if Redis answers and each model has a worker"),
    Address("GET", "/metrics", "yes", _is_well, "metrics for [Prometheus](metrics.md)"),
    Address("GET", "/openapi.json", "yes", _is_well, "the OpenAPI document of these addresses"),
    _not_here("/v1/embeddings"),
    _not_here("/v1/responses"),
    _not_here("/v1/files"),
    _not_here("/v1/batches"),
    _not_here("/v1/images/generations"),
    _not_here("/v1/audio/transcriptions"),
    _not_here("/v1/audio/speech"),
    _not_here("/v1/moderations"),
    _not_here("/v1/fine_tuning/jobs"),
    _not_here("/v1/assistants"),
    _not_here("/v1/realtime/sessions"),
)
