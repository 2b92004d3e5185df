"""Every family of the engine has its checks here, and a neighbour whose code fails them."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from family_harness import Family

from pagefleet.engine.models.registry import native_families

FAMILIES = sorted(native_families())


@pytest.fixture(scope="module")
def checked(transformers) -> dict[str, set[str]]:
    """The model types that have checks, each with its neighbours."""
    found: dict[str, set[str]] = {}
    for path in Path(__file__).parent.glob("test_*.py"):
        spec = spec_from_file_location(path.stem, path)
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        for each in vars(module).values():
            if isinstance(each, type) and issubclass(each, Family) and hasattr(each, "variants"):
                for variant in each.variants.values():
                    config = each.make_config(transformers, {**each.options, **variant.options})
                    found.setdefault(config.model_type, set()).update(variant.neighbours)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_checked(family, checked):
    model_types = set(native_families()[family].model_types)
    assert model_types <= set(checked), f"no test for {model_types - set(checked)}"
    assert all(checked[each] for each in model_types)
