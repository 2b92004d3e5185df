"""What a backend service gets, and what it does not have to pay for."""

from __future__ import annotations

import statistics
import subprocess
import sys

import pytest

import pagefleet.api

IMPORT_GOAL_S = 0.4
HEAVY = ("torch", "transformers", "triton", "numpy", "tokenizers", "pagefleet.engine", "pagefleet.workers")


def run(program):
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.strip()


def test_the_public_names():
    assert pagefleet.api.__all__ == [
        "AsyncFleet",
        "AsyncFleetClient",
        "AsyncTokenStream",
        "ChatMessage",
        "ChoiceResult",
        "Chunk",
        "ConfigurationError",
        "ContextTooLong",
        "DeadlineExceeded",
        "Fleet",
        "FleetClient",
        "FleetError",
        "FleetSettings",
        "FleetStatus",
        "InvalidRequest",
        "JobDead",
        "JobDeleted",
        "JobError",
        "JobExists",
        "JobFailed",
        "JobLost",
        "JobNotFound",
        "JobOptions",
        "JobResult",
        "JobState",
        "MissingExtra",
        "ModelCard",
        "NoAnswer",
        "ProtocolError",
        "QueueFull",
        "QueueStatus",
        "RedisUnavailable",
        "RunningJob",
        "SamplingParams",
        "StorageFull",
        "StreamTimeout",
        "StructuredOutputs",
        "TokenStream",
        "UnknownModel",
        "UnknownParameter",
        "WorkerStatus",
        "check_celery_app",
        "queue_name",
    ]
    for name in pagefleet.api.__all__:
        assert getattr(pagefleet.api, name) is not None


@pytest.mark.parametrize("module", ["pagefleet.api", "pagefleet.api.testing", "pagefleet.api.cli.main"])
def test_nothing_heavy_is_imported(module):
    program = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert run(program) == "[]"


def test_the_list_of_commands_imports_neither_the_engine_nor_celery():
    program = (
        "import sys; from click.testing import CliRunner; from pagefleet.api.cli.main import main; "
        "assert 'worker' in CliRunner().invoke(main, ['--help']).output; "
        f"print([name for name in {(*HEAVY[:-1], 'celery', 'flower', 'starlette')!r} if name in sys.modules])"
    )
    assert run(program) == "[]"


def test_the_heavy_parts_are_there_to_be_imported():
    """Else the test above could not fail."""
    program = f"import sys, pagefleet.engine.llm_engine; print([n for n in {HEAVY!r} if n in sys.modules])"
    assert "pagefleet.engine" in run(program)


@pytest.mark.alone
def test_it_imports_quickly():
    program = (
        "import time; s = time.perf_counter(); import pagefleet.api; pagefleet.api.FleetClient; "
        "print(time.perf_counter() - s)"
    )
    seconds = statistics.median(float(run(program)) for _ in range(3))
    assert seconds < 3 * IMPORT_GOAL_S


def test_nothing_is_connected_by_importing_or_constructing(tmp_path):
    program = (
        "import threading; from pagefleet.api import FleetClient; "
        "FleetClient(redis_url='redis://127.0.0.1:1/0'); print(threading.active_count())"
    )
    assert run(program) == "1"


def test_the_root_package_has_both_doors_and_opens_them_lazily():
    program = (
        "import sys, pagefleet\n"
        "print(pagefleet.__all__)\n"
        "assert not [name for name in sys.modules if name.startswith('pagefleet.')]\n"
        "from pagefleet import AsyncFleetClient, FleetClient, FleetError\n"
        f"heavy = set({HEAVY}) & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "from pagefleet import LLM, SamplingParams\n"
        "assert 'torch' not in sys.modules\n"
        "LLM, SamplingParams\n"
    )
    assert run(program) == "['LLM', 'AsyncFleetClient', 'FleetClient', 'FleetError', 'SamplingParams']"
