"""Print the installed versions as pip constraints: no URLs, no local version labels, no CUDA-only packages.

``make constraints`` writes constraints.txt with it, from an environment that has the newest versions::

    python ops/constraints.py [PYTHON]

PYTHON is the interpreter of the environment to read; by default the one that runs this.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

PYPI = "https://pypi.org/simple"
NOT_PINNED = ("pagefleet", "pip", "triton")
CUDA_ONLY = ("nvidia", "cuda", "pytorch-triton")


def main(python: str) -> None:
    """The constraints of ``python``'s environment, sorted by name, on standard output."""
    versions = dict(_installed(python))
    lines = [f"{name}=={version}" for name, version in versions.items()]
    if "torch" in versions:
        lines.append(_triton(python, versions["torch"]))
    print("# Written by `make constraints`. pip uses these versions and no others.")  # noqa: T201
    print(*sorted(lines, key=str.lower), sep="\n")  # noqa: T201


def _installed(python: str) -> Iterator[tuple[str, str]]:
    for each in json.loads(_pip(python, "list", "--format", "json")):
        name = each["name"].lower().replace("_", "-")
        if name not in NOT_PINNED and not name.startswith(CUDA_ONLY):
            # torch 2.13.0+cpu here is torch 2.13.0 on an index of CUDA builds.
            yield name, each["version"].partition("+")[0]


def _triton(python: str, torch: str) -> str:
    """Return the Triton version that torch's CUDA build requires; a CPU build works with any version."""
    options = ["--dry-run", "--ignore-installed", "--no-deps", "--quiet", "--report", "-"]
    # PyPI has the CUDA build for Linux; an index of the user's configuration may offer the CPU build first.
    options += ["--isolated", "--index-url", PYPI, f"torch=={torch}"]
    report = json.loads(_pip(python, "install", *options))
    required = report["install"][0]["metadata"]["requires_dist"]
    (triton,) = (line for line in required if line.startswith("triton=="))
    return triton.partition(";")[0].strip() + '; platform_system == "Linux"'


def _pip(python: str, *arguments: str) -> str:
    command = [python, "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout


if __name__ == "__main__":
    main(*sys.argv[1:] or [sys.executable])
