"""Where a container engine can be had: one that answers, or the lab that this repository starts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import reaper

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


def why_none():
    """The reason why no engine answers and this machine cannot have one of its own, or None."""
    if answers(os.environ):
        return None
    if os.geteuid() != 0:
        return "only root can start a container engine; set DOCKER_HOST to one that runs"
    if not Path("/etc/debian_version").exists() or shutil.which("apt-get") is None:
        return "the lab is made of Debian's packages; set DOCKER_HOST to an engine that runs"
    return None


class Lab:
    """The engine of ops/container-lab.sh, in a folder of its own (a short path: sockets stand in it).

    It is taken down by a process that waits for this one to let go of a pipe: also where this one is killed.
    """

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="pf-lab-"))
        self._environment = {**os.environ, "LAB": str(self.folder), "PYTHON": sys.executable}
        # The reaper would kill it before it has taken down anything.
        self._environment.pop(reaper.RUN, None)
        self._down = subprocess.Popen(
            ["sh", "-c", 'cat >/dev/null; exec "$0" down', LAB_SCRIPT],
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # Ctrl-C is not for it.
            start_new_session=True,
        )

    def up(self):
        """How long each step took, as the script tells it, and the variables that find the engine."""
        told = self._run("up")
        exports = self._run("env").removeprefix("export ").split()
        return told, dict(item.split("=", 1) for item in exports)

    def down(self):
        told, _ = self._down.communicate(timeout=_TIMEOUT_S)
        assert self._down.returncode == 0, told
        assert not self.folder.exists()

    def _run(self, command):
        command = [LAB_SCRIPT, command]
        options = {"env": self._environment, "capture_output": True, "text": True, "timeout": _TIMEOUT_S}
        done = subprocess.run(command, **options)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
