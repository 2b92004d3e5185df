"""Where a container engine can be had: one that answers, or the lab that this repository starts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
LAB_SCRIPT = ROOT / "ops" / "container-lab.sh"
_TIMEOUT_S = 900


def answers(environment):
    """Whether an engine and its compose plugin do, with these variables."""
    if shutil.which("docker") is None:
        return False
    commands = (["docker", "info"], ["docker", "compose", "version"])
    return all(
        subprocess.run(command, env=environment, capture_output=True, timeout=30).returncode == 0
        for command in commands
    )


def why_no_lab():
    """The reason why this machine cannot have one, or None."""
    if os.geteuid() != 0:
        return "only root can start a container engine; set DOCKER_HOST to one that runs"
    if not Path("/etc/debian_version").exists() or shutil.which("apt-get") is None:
        return "the lab is made of Debian's packages; set DOCKER_HOST to an engine that runs"
    return None


class Lab:
    """The engine of ops/container-lab.sh, in a folder of its own (a short path: sockets stand in it)."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="pf-lab-"))
        self._environment = {**os.environ, "LAB": str(self.folder), "PYTHON": sys.executable}

    def up(self):
        """How long each step took, as the script tells it, and the variables that find the engine."""
        done = self._run("up")
        assert done.returncode == 0, done.stdout + done.stderr
        exports = self._run("env").stdout.removeprefix("export ").split()
        return done.stdout, dict(item.split("=", 1) for item in exports)

    def down(self):
        done = self._run("down")
        assert done.returncode == 0, done.stdout + done.stderr
        assert not self.folder.exists()

    def _run(self, command):
        return subprocess.run(
            [LAB_SCRIPT, command],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
        )
