"""docs/layout.md matches the tree, pages name paths that exist, and the folders stay small and described."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "layout.md").read_text()
ROOTS = ("api", "engine", "workers")
MAX_MODULES = 14
GUIDES = [
    ROOT / "CONTRIBUTING.md",
    ROOT / "README.md",
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / "ops").glob("*.md"),
]
UNBOUNDED = {"api/cli", "engine/models/families", "workers/cli"}
"""One file for each command, or for each family of models."""


def folders():
    """The packages on disk; the page's static files are not a package."""
    found = [path.parent for root in ROOTS for path in (ROOT / root).rglob("__init__.py")]
    return sorted(str(path.relative_to(ROOT)) for path in found)


def modules_of(folder):
    return [path.name for path in (ROOT / folder).glob("*.py") if path.name != "__init__.py"]


def test_the_page_lists_every_folder():
    listed = re.findall(rf"^\| `((?:{'|'.join(ROOTS)})\b[\w/]*)/` \|", PAGE, re.MULTILINE)
    assert sorted(listed) == folders()


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 200


def paths_in(text):
    return set(re.findall(r"`((?:api|engine|workers|ops|tests|docs)/[\w./-]*)`", text))


def test_the_page_names_the_files_on_the_way():
    assert len(paths_in(PAGE)) > len(folders()) + 20


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_every_path_on_a_page_exists(page):
    assert {name for name in paths_in(page.read_text()) if not (ROOT / name).exists()} == set()


@pytest.mark.parametrize("folder", folders())
def test_a_folder_is_small_and_has_a_docstring(folder):
    if folder not in UNBOUNDED:
        assert len(modules_of(folder)) <= MAX_MODULES, modules_of(folder)
    docstring = ast.get_docstring(ast.parse((ROOT / folder / "__init__.py").read_text()))
    assert docstring, f"{folder}/__init__.py does not state what the folder is for"
