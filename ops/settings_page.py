"""``python -m ops.settings_page``: write docs/settings.md from the two settings modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from pydantic import AliasChoices
from pydantic.fields import FieldInfo

from pagefleet.api.config.settings import FleetSettings, FlowerSettings, GatewaySettings
from pagefleet.workers.settings import WorkerSettings

_TABLES: Final = (
    ("Workers", WorkerSettings),
    ("Flower", FlowerSettings),
    ("Gateway", GatewaySettings),
)
PAGE: Final = Path(__file__).parents[1] / "docs" / "settings.md"
_HEAD: Final = """\
# Settings

This page is generated. Edit `api/config/settings.py` or `workers/settings.py`, then run
`python -m ops.settings_page`.

Each setting is a field of `FleetSettings`, `WorkerSettings`, `FlowerSettings` or `GatewaySettings` and an
environment variable. Many are options of the commands too: see `pagefleet COMMAND --help`. A `pagefleet`
command uses the first value that it finds in:

1. its options;
2. the environment: `PAGEFLEET_MAX_NUM_SEQS=32`. An empty variable is ignored. Write a list as JSON.
   `PAGEFLEET_REDIS_URL` takes precedence over `REDIS_URL`.
3. `./.env`: the same lines. Variables without the prefix `PAGEFLEET_` are ignored, because other programs
   share this file.
4. `./pagefleet.toml`, or the TOML file in `PAGEFLEET_CONFIG`. If `PAGEFLEET_CONFIG` is empty, neither this
   file nor `./.env` is read.
5. the default.

A service that creates a `FleetClient()` reads the environment only, so that files in its working directory
cannot change it. `FleetClient(FleetSettings.from_files())` reads the files too
([why](../ops/decisions/0009-who-reads-files.md)).

In TOML, settings of all commands are at the top level, and settings of one command in its table. A table
can also override a shared setting for its command:

```toml
{example}```

A command refuses to start if a value is wrong or a key in the TOML file is unknown. The error names the
setting and the file. `pagefleet doctor` lists unknown `PAGEFLEET_*` variables.

The only secret among the settings is the password in `redis_url`. Use `redis_password_file` to keep it out
of the environment and of these files.
"""

EXAMPLE: Final = """\
redis_url = "rediss://producer@redis.internal:6379/0"
redis_password_file = "/run/secrets/producer"

[worker]
model = "Qwen/Qwen3-0.6B"
dtype = "bfloat16"
max_num_seqs = 32
aliases = ["small", "default"]
redis_url = "rediss://worker@redis.internal:6379/0"
redis_password_file = "/run/secrets/worker"

[flower]
flower_port = 5556
"""


def page() -> str:
    """The whole page, as Markdown."""
    shared = FleetSettings.model_fields
    lines = [_HEAD.format(example=EXAMPLE), "## All commands\n", *_table(shared)]
    for title, settings in _TABLES:
        own = {name: field for name, field in settings.model_fields.items() if name not in shared}
        lines += [f"\n## {title}: table `[{settings.section}]` in TOML\n", *_table(own)]
    return "\n".join([*lines, ""])


def _table(fields: dict[str, FieldInfo]) -> list[str]:
    rows = ["| setting | environment | default | meaning |", "|---|---|---|---|"]
    for name, field in fields.items():
        cells = (f"`{name}`", _variables(name, field), _default(field), _meaning(name, field))
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def _variables(name: str, field: FieldInfo) -> str:
    alias = field.validation_alias
    names = [str(each) for each in alias.choices] if isinstance(alias, AliasChoices) else []
    return " or ".join(f"`{each}`" for each in names or [f"PAGEFLEET_{name.upper()}"])


def _default(field: FieldInfo) -> str:
    value: Any = field.get_default(call_default_factory=True)
    return "-" if value is None else f"`{value}`"


def _meaning(name: str, field: FieldInfo) -> str:
    """The description of the field, and its values if it has a fixed set of them."""
    if not field.description:
        raise ValueError(f"the setting {name} has no description")
    choices = getattr(field.annotation, "__args__", ()) if "Literal" in str(field.annotation) else ()
    values = f" Values: {', '.join(f'`{choice}`' for choice in choices)}." if choices else ""
    return field.description.replace("|", "\\|") + values


if __name__ == "__main__":
    PAGE.write_text(page())
