"""``python -m ops.settings_page``: writes docs/settings.md from the two settings modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from pydantic import AliasChoices
from pydantic.fields import FieldInfo

from pagefleet.api.settings import FleetSettings, FlowerSettings
from pagefleet.workers.settings import WorkerSettings

PAGE: Final = Path(__file__).parents[1] / "docs" / "settings.md"
_HEAD: Final = """\
# Settings

Written by `python -m ops.settings_page` from `api/settings.py` and `workers/settings.py`; change it there.

Each is a field of `FleetSettings`, `WorkerSettings` or `FlowerSettings`, and an environment variable;
those that are often needed are options of the commands too. What is given goes before the
environment, and the environment before the default. In the environment a list is written as JSON. A
value that cannot be is refused at the start, in one sentence.
"""


def page() -> str:
    """The whole page, as Markdown."""
    shared = FleetSettings.model_fields
    lines = [_HEAD, "## All\n", *_table(shared)]
    for title, settings in (("Workers alone", WorkerSettings), ("Flower alone", FlowerSettings)):
        own = {name: field for name, field in settings.model_fields.items() if name not in shared}
        lines += [f"\n## {title}\n", *_table(own)]
    return "\n".join([*lines, ""])


def _table(fields: dict[str, FieldInfo]) -> list[str]:
    rows = ["| setting | environment | default | meaning |", "|---|---|---|---|"]
    for name, field in fields.items():
        cells = (f"`{name}`", _variables(name, field), _default(field), _meaning(name, field))
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def _variables(name: str, field: FieldInfo) -> str:
    alias = field.validation_alias
    names = [str(each) for each in alias.choices[1:]] if isinstance(alias, AliasChoices) else []
    return " or ".join(f"`{each}`" for each in names or [f"PAGEFLEET_{name.upper()}"])


def _default(field: FieldInfo) -> str:
    value: Any = field.get_default(call_default_factory=True)
    return "-" if value is None else f"`{value}`"


def _meaning(name: str, field: FieldInfo) -> str:
    """What its description says, and which values there are where they are few."""
    if not field.description:
        raise ValueError(f"the setting {name} has no description")
    choices = getattr(field.annotation, "__args__", ()) if "Literal" in str(field.annotation) else ()
    few = f" ({', '.join(f'`{choice}`' for choice in choices)})" if choices else ""
    return field.description.replace("|", "\\|") + few


if __name__ == "__main__":
    PAGE.write_text(page())
