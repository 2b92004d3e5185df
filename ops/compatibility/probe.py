"""Probes: requests with a check of the answer and the words on the page; and the checks that they share."""

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
TEXT: Final = 'zF E;@l9!Uhk= 4"'
"""The null engine's text for this seed, in the first choice."""


class Answer(NamedTuple):
    """The answer to one probe. ``data`` is the JSON, or for a stream the data of its events."""

    status: int
    headers: Mapping[str, str]
    data: Any
    job: GenerateRequest | None
    """The request of the job, or None if no job was enqueued."""

    @property
    def choices(self) -> list[dict[str, Any]]:
        return list(self.data["choices"])

    @property
    def text(self) -> str:
        """The text of the first choice, of either endpoint."""
        first = self.choices[0]
        return str(first["text"] if "text" in first else first["message"]["content"])


Check = Callable[[Answer], bool]


@dataclass(frozen=True, slots=True)
class Probe:
    """
    Args:
        parameter: its name in a request, such as ``stream_options.include_usage``; a colon separates it from
            a value or a case, such as ``response_format: json_schema``.
        sends: fields that replace those of the endpoint's request.
        shows: the check of the answer.
        words: the difference, or the reason why it is not supported.
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
    """An address that takes a body, with the probes of all its fields."""

    path: str
    request: Mapping[str, Any]
    groups: Mapping[str, tuple[Probe, ...]] = field(default_factory=dict)

    @property
    def probes(self) -> list[Probe]:
        return [probe for group in self.groups.values() for probe in group]


@dataclass(frozen=True, slots=True)
class Address:
    """An address without such fields; ``{job}`` in its path is the id of an ended job."""

    method: str
    path: str
    support: Support
    shows: Check
    words: str = ""


def ask(http: httpx.Client, store: JobStore, endpoint: Endpoint, probe: Probe) -> Answer:
    """Send a probe and return its answer."""
    reply = http.post(endpoint.path, json={**endpoint.request, **probe.sends})
    if reply.headers["content-type"].startswith("text/event-stream"):
        events = re.findall(r"^data: (\{.*)$", reply.text, re.MULTILINE)
        data: Any = [json.loads(each) for each in events]
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
    """Check that the job has these fields. The engine's tests check their effect."""

    def shows(answer: Answer) -> bool:
        assert answer.job is not None, answer.data
        fields_of_job = {**answer.job.model_dump(), **answer.job.sampling.model_dump()}
        return answer.status in (200, 202) and {name: fields_of_job[name] for name in fields} == fields

    return shows


def check(wanted: Callable[[Answer], bool]) -> Check:
    """Check that the request succeeds and that the answer fulfils a condition."""
    return lambda answer: answer.status == 200 and wanted(answer)


def refuses(param: str, code: str = "unsupported_parameter", status: int = 400) -> Check:
    def shows(answer: Answer) -> bool:
        error = answer.data["error"]
        return (answer.status, error["param"], error["code"]) == (status, param, code)

    return shows


def ignores(*names: str) -> Check:
    """Check that the fields do not change the answer, and that a header lists them."""

    def shows(answer: Answer) -> bool:
        named = answer.headers.get(IGNORED_HEADER, "").split(", ")
        return answer.status == 200 and named == list(names) and answer.text == TEXT[:4]

    return shows


def ignores_in(*names: str) -> Check:
    """Check the same as :func:`ignores` for an answer without choices."""
    return lambda answer: answer.status == 200 and answer.headers.get(IGNORED_HEADER) == ", ".join(names)


def has_no_effect(answer: Answer) -> bool:
    """Check that the field does not change the answer, and that the header does not list it."""
    return answer.status == 200 and IGNORED_HEADER not in answer.headers and answer.text == TEXT[:4]


def is_not_there(answer: Answer) -> bool:
    return answer.status == 404 and answer.data["error"]["code"] == "unknown_url"
