"""The folders at the root are the packages: what is on disk is in the wheel, and the wheel works alone."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pagefleet.api.config.extras import _MODULES

ROOT = Path(__file__).parent.parent
CONSTRAINTS = [ROOT / "constraints.txt", ROOT / "tests/gateway/clients/litellm-constraints.txt"]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = PYPROJECT["tool"]["setuptools"]["packages"]


def test_every_package_on_disk_is_listed():
    """An unlisted one works in an editable install and vanishes from the wheel."""
    on_disk = {
        "pagefleet." + ".".join(path.parent.relative_to(ROOT).parts)
        for top in ("api", "engine", "workers")
        for path in (ROOT / top).rglob("__init__.py")
    }
    # The root package's folder is under api/.
    assert on_disk - {"pagefleet.api.pagefleet"} | {"pagefleet"} == set(PACKAGES)


def test_pre_commit_runs_the_versions_of_the_constraints():
    pinned = pins(ROOT / "constraints.txt")
    text = (ROOT / ".pre-commit-config.yaml").read_text()
    hooks = dict(re.findall(r'\["([\w-]+)==([\d.]+)"\]', text))
    assert set(hooks) == {"ruff", "typos"}
    assert hooks == {name: pinned[name] for name in hooks}


def test_every_command_exists():
    for target in PYPROJECT["project"]["entry-points"]["pagefleet.commands"].values():
        module = target.partition(":")[0]
        path = ROOT / Path(*module.removeprefix("pagefleet.").split(".")).with_suffix(".py")
        assert path.exists(), target


@pytest.mark.parametrize("extra", ["worker", "local", "gateway", "monitor"])
def test_an_extra_is_looked_for_by_each_of_its_modules(extra):
    provided = packages_distributions()
    probed = {name.lower().replace("_", "-") for module in _MODULES[extra] for name in provided[module]}
    wanted = {
        re.match(r"[\w.-]+", line)[0].lower().replace("_", "-")
        for line in PYPROJECT["project"]["optional-dependencies"][extra]
    }
    # An image without a GPU has no Triton, and its worker works.
    assert wanted - {"triton"} <= probed


def test_the_version_is_one():
    assert version("pagefleet") == PYPROJECT["project"]["version"]
    assert f"## {version('pagefleet')}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_has_every_module_script_and_marker(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for top in ("api", "engine", "workers"):
        for pattern in ("*.py", "*.lua", "*.txt", "py.typed"):
            for path in (ROOT / top).rglob(pattern):
                place = str(path.relative_to(ROOT)).removeprefix("api/pagefleet/")
                assert f"pagefleet/{place}" in names
    assert [name for name in names if name.startswith("pagefleet/engine/backends/cpu/_kernels.")]


def test_the_sdist_has_the_packages_and_no_tests(tmp_path):
    command = [
        sys.executable,
        "-m",
        "build",
        "--sdist",
        "--no-isolation",
        "--outdir",
        str(tmp_path),
        str(ROOT),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"api/pagefleet/__init__.py", "api/protocol/scripts/claim.lua", "workers/py.typed"} <= names
    kernels = {str(path.relative_to(ROOT)) for path in (ROOT / "engine/backends/cpu/kernels").iterdir()}
    assert kernels <= names
    assert not [name for name in names if name.startswith(("tests", "ops", "docs", "."))]


@pytest.mark.slow
def test_the_wheel_alone_is_a_producer(wheel, tmp_path):
    """Installed without extras into an empty environment: the client imports, and a command whose extra is
    missing names the pip command."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--constraint", str(CONSTRAINTS[0]), str(wheel)],
        check=True,
        timeout=300,
    )

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([python, *arguments], capture_output=True, text=True, cwd=tmp_path, timeout=60)

    done = run("-c", "import pagefleet; print(pagefleet.__file__); pagefleet.FleetClient()")
    assert done.returncode == 0, done.stderr
    assert str(tmp_path) in done.stdout
    assert run("-c", "import torch").returncode != 0
    help_text = run("-m", "pagefleet.api.cli.main", "--help").stdout
    assert "worker" in help_text
    # The command installs from where this was installed from: no index has the package.
    command = f"pip install '{wheel}[worker]'"
    assert "Not installed; `pagefleet worker` shows how to install it" in help_text
    refused = run("-m", "pagefleet.api.cli.main", "worker", "--model", "x")
    assert refused.returncode == 1
    assert f"`pagefleet worker` is not installed: run {command}" in refused.stderr
    assert "Traceback" not in refused.stderr
    # Some modules of an extra come with other packages: a part of it is not the extra.
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (site / "starlette").mkdir()
    (site / "starlette" / "__init__.py").touch()
    refused = run("-m", "pagefleet.api.cli.main", "serve")
    assert refused.returncode == 1
    command = f"pip install '{wheel}[gateway]'"
    assert refused.stderr == f"Error: `pagefleet serve` is not installed: run {command}\n"


def pins(path: Path) -> dict[str, str]:
    """The version of each name; the file has no other line."""
    versions = {}
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            requirement = Requirement(line)
            (specifier,) = requirement.specifier
            assert specifier.operator == "==", line
            assert requirement.url is None
            assert not requirement.extras, line
            versions[canonicalize_name(requirement.name)] = specifier.version
    return versions


@pytest.mark.parametrize("path", CONSTRAINTS, ids=lambda path: path.name)
def test_constraints_serve_every_index(path):
    """No URLs and no local labels, which one index has; nothing that only a machine with CUDA installs."""
    assert not {mark for mark in ("://", "+", "*") if mark in path.read_text()}
    assert not [name for name in pins(path) if name.startswith(("nvidia", "cuda")) or name == "pagefleet"]


def test_constraints_have_each_requirement_in_its_range():
    versions = pins(ROOT / "constraints.txt")
    project = PYPROJECT["project"]
    asked = sum(project["optional-dependencies"].values(), project["dependencies"])
    for each in map(Requirement, [*asked, *PYPROJECT["build-system"]["requires"]]):
        assert each.specifier.contains(versions[canonicalize_name(each.name)]), each
