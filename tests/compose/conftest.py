"""A container engine and the stack of compose.yaml on it."""

from __future__ import annotations

import os
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from compose_project import IMAGES, Project
from container_engine import Lab, answers, why_no_lab

_report: list[str] = []


@contextmanager
def stage(name):
    began = time.monotonic()
    yield
    _report.append(f"{name:<24} {time.monotonic() - began:6.0f} s")


def pytest_terminal_summary(terminalreporter):
    """Where the time went, and how large the images are."""
    if _report:
        terminalreporter.section("compose")
        terminalreporter.write_line("\n".join(_report))


@pytest.fixture(scope="session")
def engine():
    """The variables that find an engine; a lab of our own is gone afterwards."""
    if answers(os.environ):
        yield {}
        return
    reason = why_no_lab()
    if reason is not None:
        refuse = pytest.fail if os.environ.get("CI") else pytest.skip
        refuse(f"no container engine: {reason}; compose.yaml and the Dockerfile are only linted")
    lab = Lab()
    try:
        with stage("lab up"):
            told, environment = lab.up()
        _report.extend(f"    {line}" for line in told.splitlines())
        yield environment
    finally:
        with stage("lab down"):
            lab.down()


@pytest.fixture(scope="session")
def project(engine, tmp_path_factory):
    """The images are built; nothing runs yet."""
    project = Project(tmp_path_factory.mktemp("checkout"), engine)
    try:
        with stage("checkout and wheels"):
            project.copy_checkout()
        with stage("build"):
            project.build()
        _report.extend(f"image {name:<18} {project.image_bytes(name) / 1e6:6.0f} MB" for name in IMAGES)
        if _redis_version(project) < (7, 2):
            project.lacks("client|setinfo")
        with stage("tests"):
            yield project
    finally:
        project.down()
        # An engine of our own goes with all that it has.
        if not engine:
            project.remove_images()


def _redis_version(project):
    text = project.docker("run", "--rm", "--entrypoint", "redis-server", "redis:7-alpine", "--version")
    return tuple(int(part) for part in text.partition("v=")[2].split()[0].split(".")[:2])
