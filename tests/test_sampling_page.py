"""docs/sampling.md is written from the sampling parameters' own model, and is up to date."""

from __future__ import annotations

from pathlib import Path

import pytest

from pagefleet.api.contract.messages import GenerateRequest
from pagefleet.api.contract.sampling import SamplingParams

ROOT = Path(__file__).parents[1]


@pytest.fixture
def sampling_page(monkeypatch):
    """No package of the wheel: imported from the repository's root."""
    monkeypatch.syspath_prepend(ROOT)
    from ops import sampling_page

    return sampling_page


def test_the_page_is_what_the_model_says(sampling_page):
    assert sampling_page.PAGE.read_text() == sampling_page.page(), "run python -m ops.sampling_page"


def test_every_parameter_has_a_row_with_its_error(sampling_page):
    rows = {line.split("|")[1].strip(): line for line in sampling_page.page().splitlines() if "| `" in line}
    described = [name for name, field in GenerateRequest.model_fields.items() if field.description]
    assert {"priority", "cache_salt", "truncate_prompt_tokens"} <= set(described)
    assert list(rows) == [f"`{name}`" for name in (*SamplingParams.model_fields, *described)]
    for name, line in rows.items():
        error = line.replace("\\|", "").split("|")[5].strip()
        assert error.startswith(name.strip("`")), line
        assert error.endswith(")."), line


def test_a_parameter_without_a_description_is_refused(sampling_page):
    from pydantic.fields import FieldInfo

    with pytest.raises(ValueError, match="nameless"):
        sampling_page._meaning("nameless", FieldInfo(default=1))
