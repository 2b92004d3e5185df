"""A container engine and the stack of compose.yaml on it."""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from build_context import copy_checkout
from compose_project import IMAGES, Project
from container_engine import Lab, answers, why_none

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
def checkout(tmp_path_factory):
    """The build context, in the making: pip waits for the network meanwhile, as what starts the lab does."""
    reason = why_none()
    if reason is not None:
        refuse = pytest.fail if os.environ.get("CI") else pytest.skip
        refuse(f"no container engine: {reason}; compose.yaml and the Dockerfile are only linted")
    folder = tmp_path_factory.mktemp("checkout")
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(copy_checkout, folder)


@pytest.fixture(scope="session")
def engine(checkout):
    """The variables that find an engine; a lab of our own is gone afterwards."""
    if answers(os.environ):
        yield {}
        return
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
def project(engine, checkout):
    """The images are built; nothing runs yet."""
    with stage("checkout and wheels"):
        folder = checkout.result()
    project = Project(folder, engine)
    try:
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
