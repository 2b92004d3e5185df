"""docs/families.md and `pagefleet models families` show the table of architectures, and the table is true."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from click.testing import CliRunner

from pagefleet.engine.checking.architectures import Support, read_architectures, read_version
from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.models.registry import native_families, read_spec
from pagefleet.workers.cli.model_families import families

ROOT = Path(__file__).parents[1]
ROWS = {row.model_type: row for row in read_architectures()}


@pytest.fixture
def ops_modules(monkeypatch):
    """No package of the wheel: imported from the repository's root."""
    monkeypatch.syspath_prepend(ROOT)


def test_the_page_is_what_the_table_says(ops_modules):
    from ops import families_page

    assert families_page.PAGE.read_text() == families_page.page(), "run python -m ops.families_page"


def test_the_native_rows_are_the_registrys():
    native = {(row.note, row.model_type) for row in ROWS.values() if row.support is Support.NATIVE}
    for file, model_type in native:
        family, row = native_families()[file], ROWS[model_type]
        assert model_type in family.model_types or row.name in family.architectures, row
    known = {(file, name) for file, family in native_families().items() for name in family.model_types}
    assert known <= native, "run make families-page"


def test_each_refusal_has_a_reason_and_no_fallback_has_one():
    for row in ROWS.values():
        assert bool(row.note) == (row.support is not Support.FALLBACK), row


def test_the_command_prints_the_rows_without_torch():
    """It starts in less than a second only if it imports neither torch nor transformers."""
    code = (
        "import sys; from pagefleet.workers.cli.model_families import families\n"
        "families(['--json'], standalone_mode=False)\n"
        "assert not {'torch', 'transformers', 'pydantic'} & set(sys.modules)"
    )
    found = json.loads(subprocess.check_output([sys.executable, "-c", code], text=True))
    assert {row["model_type"]: row["support"] for row in found} == {
        name: str(row.support) for name, row in ROWS.items()
    }
    lines = CliRunner().invoke(families).output
    assert all(name in lines for name in ("llama", "mixtral", "mamba"))


@pytest.fixture
def same_version():
    if version("transformers") != read_version():
        pytest.skip(f"the table describes transformers {read_version()}")


@pytest.mark.slow
def test_every_refused_type_is_refused_at_load(same_version):
    """With the default config of its class: a type that no test compares with transformers must not load."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    loaded = []
    for row in ROWS.values():
        if row.support is not Support.REFUSED or row.model_type == "gemma4_assistant":
            # The default config of gemma4_assistant is not valid.
            continue
        config = CONFIG_MAPPING[row.model_type]().to_dict()
        try:
            read_spec({**config, "architectures": [row.name]})
        except ModelLoadError:
            continue
        loaded.append(row.model_type)
    assert loaded == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "model_type",
    ["ernie4_5", "glm4_moe", "hunyuan_v1_dense", "olmoe", "persimmon", "bert", "diffllama", "jamba"],
)
def test_a_row_is_what_a_tiny_checkpoint_shows(ops_modules, same_version, model_type):
    from ops import families_survey

    assert families_survey.row(model_type) == ROWS[model_type]
