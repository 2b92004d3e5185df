"""The tree of errors: drawn as it is, and every code finds its class again."""

from __future__ import annotations

import pickle
import re

import pytest

from pagefleet.api.contract import errors
from pagefleet.api.contract.errors import FleetError, JobFailed, error_from_code


def tree(root):
    """The classes below ``root`` that this module defines, each with its parent's name."""
    found = {}
    for error in root.__subclasses__():
        if error.__module__ == errors.__name__:
            found[error.__name__] = root.__name__
            found |= tree(error)
    return found


def drawn_tree():
    """The same, read off the picture in the module's docstring."""
    found, path = {}, ["FleetError"]
    for line in errors.__doc__.splitlines():
        drawn = re.match(r"    ([│ ]*)[├└]── (\w+)", line)
        if drawn:
            depth = len(drawn[1]) // 4 + 1
            path[depth:] = [drawn[2]]
            found[drawn[2]] = path[depth - 1]
    return found


ALL = sorted((getattr(errors, name) for name in [*tree(FleetError), "FleetError"]), key=lambda e: e.__name__)


def test_the_picture_shows_the_classes():
    assert drawn_tree() == tree(FleetError)


def test_the_public_names_are_the_tree_and_one_function():
    assert set(errors.__all__) == {*tree(FleetError), "FleetError", "error_from_code"}
    assert errors.__all__ == sorted(errors.__all__)


def test_codes_are_unique_and_pinned():
    """Other versions and other languages branch on them."""
    assert {error.__name__: error.code for error in ALL} == {
        "ConfigurationError": "configuration",
        "ContextTooLong": "context_too_long",
        "DeadlineExceeded": "deadline_exceeded",
        "FleetError": "fleet_error",
        "InvalidRequest": "invalid_request",
        "JobDead": "job_dead",
        "JobDeleted": "job_deleted",
        "JobError": "job_error",
        "JobExists": "job_exists",
        "JobFailed": "job_failed",
        "JobLost": "job_lost",
        "JobNotFound": "job_not_found",
        "MissingExtra": "missing_extra",
        "NoAnswer": "no_answer",
        "ProtocolError": "protocol",
        "QueueFull": "queue_full",
        "RedisUnavailable": "redis_unavailable",
        "StorageFull": "storage_full",
        "StreamTimeout": "stream_timeout",
        "UnknownModel": "unknown_model",
        "UnknownParameter": "unknown_parameter",
    }


@pytest.mark.parametrize("error", ALL)
def test_every_code_round_trips(error):
    again = error_from_code(error.code, "A sentence.", param="p", job_id="j")
    assert type(again) is error
    assert (str(again), again.message, again.param, again.job_id) == ("A sentence.", "A sentence.", "p", "j")


def test_a_code_from_the_future_is_a_failure_that_keeps_its_sentence():
    error = error_from_code("quantum_flux", "The flux was out.", job_id="j")
    assert type(error) is JobFailed
    assert (error.message, error.job_id) == ("The flux was out.", "j")


@pytest.mark.parametrize("error", ALL)
def test_an_error_crosses_process_boundaries(error):
    """Celery's prefork pool and multiprocessing pickle what a task raises."""
    again = pickle.loads(pickle.dumps(error("A sentence.", param="p", job_id="j")))
    assert type(again) is error
    assert (again.message, again.param, again.job_id, str(again)) == ("A sentence.", "p", "j", "A sentence.")


def test_errors_are_also_what_python_calls_them():
    """`except TimeoutError` and the like work for callers who know nothing of us."""
    assert issubclass(errors.InvalidRequest, ValueError)
    assert issubclass(errors.StreamTimeout, TimeoutError)
    assert issubclass(errors.RedisUnavailable, ConnectionError)
    assert issubclass(errors.MissingExtra, ImportError)
