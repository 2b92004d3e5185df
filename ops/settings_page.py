"""``python -m ops.settings_page``: writes docs/settings.md from the two settings modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from pydantic import AliasChoices
from pydantic.fields import FieldInfo

from pagefleet.api.config.settings import FleetSettings, FlowerSettings, GatewaySettings
from pagefleet.workers.settings import WorkerSettings

_TABLES: Final = (
    ("Workers alone", WorkerSettings),
    ("Flower alone", FlowerSettings),
    ("The gateway alone", GatewaySettings),
)
PAGE: Final = Path(__file__).parents[1] / "docs" / "settings.md"
_HEAD: Final = """\
# Settings

Written by `python -m ops.settings_page` from `api/config/settings.py` and `workers/settings.py`; change
it there.

Each is a field of `FleetSettings`, `WorkerSettings`, `FlowerSettings` or `GatewaySettings`, and an
environment variable; those that are often needed are options of the commands too. A `pagefleet` command
takes each from the first of these that has it:

1. its options;
2. the environment: `PAGEFLEET_MAX_NUM_SEQS=32`; an empty variable counts as none, a list is written as JSON;
3. `./.env`: the same lines; only names that begin with `PAGEFLEET_` are read, other programs' are left alone;
4. `./pagefleet.toml`, or the TOML file that `PAGEFLEET_CONFIG` names (empty: no files at all are read);
5. the default.

A service that makes a `FleetClient()` reads the environment alone: no file that happens to lie in its
working directory changes it. `FleetClient(FleetSettings.from_files())` asks for the files
([why](../ops/decisions/0009-who-reads-files.md)).

In TOML, what all commands share stands at the top, and what one alone has in its table; a table may
also have a shared setting, for that command alone:

```toml
{example}```

A wrong value is refused at the start, in one sentence that says which file it stands in; so is a key that
no setting is called. Of variables, `pagefleet doctor` names those that no setting is called.

No setting is a secret but the password in `redis_url`: `redis_password_file` keeps it out of the environment
and of these files.
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
    lines = [_HEAD.format(example=EXAMPLE), "## All\n", *_table(shared)]
    for title, settings in _TABLES:
        own = {name: field for name, field in settings.model_fields.items() if name not in shared}
        lines += [f"\n## {title}: `[{settings.section}]` in TOML\n", *_table(own)]
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
    """What its description says, and which values there are where they are few."""
    if not field.description:
        raise ValueError(f"the setting {name} has no description")
    choices = getattr(field.annotation, "__args__", ()) if "Literal" in str(field.annotation) else ()
    few = f" ({', '.join(f'`{choice}`' for choice in choices)})" if choices else ""
    return field.description.replace("|", "\\|") + few


if __name__ == "__main__":
    PAGE.write_text(page())
