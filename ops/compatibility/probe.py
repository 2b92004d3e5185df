"""Probe: a request, what its answer must show, and what the page says of it; and the checks they share."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

import httpx

from pagefleet.api.contract.messages import GenerateRequest
from pagefleet.api.gateway.answers.answer import JOB_HEADER
from pagefleet.api.gateway.answers.job_ids import jobs_of
from pagefleet.api.gateway.http.body import IGNORED_HEADER
from pagefleet.api.protocol.job_store import JobStore

Support = Literal["yes", "no", "differs"]
SEED: Final = 7
TEXT: Final = "f-)WMZsL2`QBIlih"
"""What the null engine says with that seed, in every choice that is the first."""


class Answer(NamedTuple):
    """Of one probe. ``data`` is JSON, or of a stream the data of its events."""

    status: int
    headers: Mapping[str, str]
    data: Any
    job: GenerateRequest | None
    """What the worker was asked; None where nothing was enqueued."""

    @property
    def choices(self) -> list[dict[str, Any]]:
        return list(self.data["choices"])

    @property
    def text(self) -> str:
        """Of the first choice, of either endpoint."""
        first = self.choices[0]
        return str(first["text"] if "text" in first else first["message"]["content"])


Check = Callable[[Answer], bool]


@dataclass(frozen=True, slots=True)
class Probe:
    """
    Args:
        parameter: as a request spells it, ``stream_options.include_usage``; what else there is to say of it
            stands behind a colon, ``response_format: json_schema``.
        sends: laid over the endpoint's own request.
        shows: what must be true of the answer.
        words: how it differs, or why there is none.
    """

    parameter: str
    support: Support
    sends: Mapping[str, Any]
    shows: Check
    words: str = ""

    @property
    def field(self) -> str:
        """The field of a body, without indices: ``messages.role``."""
        return re.sub(r"\[.*?\]", "", self.parameter.partition(":")[0])


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What generates, with all that it may be sent."""

    path: str
    request: Mapping[str, Any]
    groups: Mapping[str, tuple[Probe, ...]] = field(default_factory=dict)

    @property
    def probes(self) -> list[Probe]:
        return [probe for group in self.groups.values() for probe in group]


@dataclass(frozen=True, slots=True)
class Address:
    """Any other address; ``{job}`` in its path is a job that has ended."""

    method: str
    path: str
    support: Support
    shows: Check
    words: str = ""


def ask(http: httpx.Client, store: JobStore, endpoint: Endpoint, probe: Probe) -> Answer:
    """Sends a probe and reads what came of it."""
    reply = http.post(endpoint.path, json={**endpoint.request, **probe.sends})
    if reply.headers["content-type"].startswith("text/event-stream"):
        told = re.findall(r"^data: (\{.*)$", reply.text, re.MULTILINE)
        data: Any = [json.loads(each) for each in told]
    else:
        data = reply.json()
    job_id = reply.headers.get(JOB_HEADER)
    record = None if job_id is None else store.read(jobs_of(job_id)[0])
    return Answer(reply.status_code, reply.headers, data, None if record is None else record.request())


def ask_address(http: httpx.Client, address: Address, job_id: str) -> Answer:
    body = {"json": {}} if address.method == "POST" else {}
    reply = http.request(address.method, address.path.replace("{job}", job_id), **body)
    is_json = reply.headers["content-type"] == "application/json"
    return Answer(reply.status_code, reply.headers, reply.json() if is_json else reply.text, None)


def reaches(**fields: Any) -> Check:
    """The worker is asked for it: what the engine makes of it is its own tests' matter."""

    def shows(answer: Answer) -> bool:
        assert answer.job is not None, answer.data
        told = {**answer.job.model_dump(), **answer.job.sampling.model_dump()}
        return answer.status in (200, 202) and {name: told[name] for name in fields} == fields

    return shows


def says(wanted: Callable[[Answer], bool]) -> Check:
    """An answer of which something is true."""
    return lambda answer: answer.status == 200 and wanted(answer)


def refuses(param: str, code: str = "unsupported_parameter", status: int = 400) -> Check:
    def shows(answer: Answer) -> bool:
        error = answer.data["error"]
        return (answer.status, error["param"], error["code"]) == (status, param, code)

    return shows


def ignores(*names: str) -> Check:
    """The answer is what it is without, and a header names what nobody looked at."""

    def shows(answer: Answer) -> bool:
        named = answer.headers.get(IGNORED_HEADER, "").split(", ")
        return answer.status == 200 and named == list(names) and answer.text == TEXT[:4]

    return shows


def ignores_in(*names: str) -> Check:
    """As :func:`ignores`, of an answer without choices."""
    return lambda answer: answer.status == 200 and answer.headers.get(IGNORED_HEADER) == ", ".join(names)


def has_no_effect(answer: Answer) -> bool:
    """Known and not named: the answer is what it is without."""
    return answer.status == 200 and IGNORED_HEADER not in answer.headers and answer.text == TEXT[:4]


def is_not_there(answer: Answer) -> bool:
    return answer.status == 404 and answer.data["error"]["code"] == "unknown_url"
