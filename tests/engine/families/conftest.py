"""Fixtures of the family modules: one `case` for each variant of a `FamilyChecks` class."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("family_harness", "family_checks")

from family_harness import Case, Variant  # noqa: E402


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each check once for each variant, and the neighbour check once for each neighbour of a variant."""
    variants: dict[str, Variant] | None = getattr(metafunc.cls, "variants", None)
    if variants is None or "case" not in metafunc.fixturenames:
        return
    names = ["case"]
    rows = [
        pytest.param(name, id=name, marks=[*each.marks, *_slow(metafunc, is_first=index == 0)])
        for index, (name, each) in enumerate(variants.items())
    ]
    if "neighbour" in metafunc.fixturenames:
        names.append("neighbour")
        rows = [
            pytest.param(name, neighbour, id=f"{name}-as-{neighbour}", marks=each.marks)
            for name, each in variants.items()
            for neighbour in each.neighbours
        ]
        assert rows, f"{metafunc.cls.__name__}: no variant names a neighbour whose code must fail"
    metafunc.parametrize(names, rows, indirect=["case"])


def _slow(metafunc: pytest.Metafunc, *, is_first: bool) -> list[pytest.MarkDecorator]:
    """Return the mark of a check of a variant that only `make test-slow` runs."""
    if not hasattr(metafunc.cls, "thorough"):
        # A class with checks and marks of its own.
        return []
    thorough = metafunc.cls.thorough
    is_comparison = metafunc.function.__name__.startswith("test_logits")
    runs_daily = is_first and (thorough or hasattr(metafunc.function, "everyday"))
    return [] if runs_daily or (thorough and is_comparison) else [pytest.mark.slow]


@pytest.fixture(scope="class")
def cases(
    request: pytest.FixtureRequest, transformers: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Case]]:
    """Return the case of a variant: its checkpoint, its oracle and its loaded models, which the checks of the
    class share."""

    @cache
    def case_of(name: str) -> Case:
        variant = request.cls.variants[name]
        return Case(transformers, request.cls, variant, tmp_path_factory.mktemp("family"))

    with one_thread():
        yield case_of


@pytest.fixture
def case(request: pytest.FixtureRequest, cases: Callable[[str], Case]) -> Case:
    return cases(request.param)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread: on matrices this small, more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
