"""Every other address: ours, and those of OpenAI's that there are not."""

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


# In this order: the job is deleted after it was read.
ADDRESSES: Final = (
    Address(
        "GET", "/v1/models", "differs", _lists_models, "`created` is 0; context, aliases and `ready` beside"
    ),
    Address("GET", "/v1/jobs", "yes", _lists_jobs, "ours: the newest of the tenant's"),
    Address("POST", "/v1/jobs/{job}/cancel", "yes", _is_ended_job, "ours: what there is of it is kept"),
    Address("GET", "/", "yes", _is_well, "ours: a page to chat with"),
    Address("GET", "/page/main.js", "yes", _is_well, "its parts"),
    Address("GET", "/v1/models/null", "differs", _is_model, "by canonical name or alias"),
    Address("GET", "/v1/jobs/{job}", "yes", _is_ended_job, "ours: state, and the answer once there is one"),
    Address("GET", "/v1/jobs/{job}/stream", "yes", _streams, "ours: the rest after `Last-Event-ID`"),
    Address("DELETE", "/v1/jobs/{job}", "yes", _is_gone, "ours: cancelled, and all of it removed"),
    Address("GET", "/health", "yes", _is_well, "the process lives"),
    Address("GET", "/ready", "yes", _is_well, "Redis answers, each model has a worker"),
    Address("GET", "/metrics", "yes", _is_well, "[for Prometheus](metrics.md)"),
    Address("GET", "/openapi.json", "yes", _is_well, "all of this for machines"),
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
