"""The generated synchronous client is current, and fits the modules that are written by hand."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import ParamSpec, TypeVar

import pytest

from ops import sync_client


def test_the_generated_files_are_current():
    assert sync_client.outdated() == [], "run `make sync-client` and commit what it writes"


@pytest.mark.parametrize("name", ["inbox", "resources", "subscriber", "tasks"])
def test_the_modules_written_by_hand_have_the_same_interface(name):
    """The generated code uses either of them."""
    one, other = (
        public_names(import_module(f"pagefleet.api.client.{kind}.{name}"))
        for kind in ("asynchronous", "synchronous")
    )
    assert one <= other


def public_names(module):
    """Names of functions and methods with their parameters."""
    found = set()
    for name, value in vars(module).items():
        is_own = getattr(value, "__module__", None) == module.__name__ and not name.startswith("_")
        if not is_own or isinstance(value, TypeVar | ParamSpec):
            continue
        name = name.removeprefix("Async")
        found.add((name, *inspect.signature(value).parameters))
        if inspect.isclass(value):
            found |= {
                (name, member, *inspect.signature(function).parameters)
                for member, function in vars(value).items()
                if inspect.isfunction(function) and not member.startswith("_")
            }
    return found
