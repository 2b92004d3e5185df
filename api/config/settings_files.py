"""Settings from files: ``./.env`` and a TOML file. Which files, ``settings.py`` says; here they are read.

Only what is pagefleet's is taken from a ``.env``, which several programs share; a TOML file is ours, and
a key in it that no setting is called is a mistake.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

from pydantic import AliasChoices
from pydantic_settings import BaseSettings, DotEnvSettingsSource, EnvSettingsSource
from pydantic_settings.exceptions import SettingsError

from pagefleet.api.contract.errors import ConfigurationError

ENV_FILE: Final = Path(".env")
TOML_FILE: Final = Path("pagefleet.toml")
SECTIONS: Final = ("worker", "flower", "gateway")
"""The tables that a TOML file may have, one for each class of settings beside the shared ones."""
_OURS: Final = "pagefleet_"


def from_environment(settings: type[BaseSettings]) -> dict[str, Any]:
    """What the environment says, by setting. Raises: ConfigurationError: a list that is no JSON."""
    return _read(EnvSettingsSource(settings), "the environment")


def from_env_file(settings: type[BaseSettings], file: Path) -> dict[str, Any]:
    """What the ``PAGEFLEET_*`` lines of a ``.env`` say, by setting; other names, REDIS_URL too, are not ours.

    Raises:
        ConfigurationError: it cannot be read, or has a list that is no JSON.
    """
    if not file.is_file():
        return {}
    try:
        source = DotEnvSettingsSource(settings, env_file=file, env_file_encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file} cannot be read: {error}.") from None
    source.env_vars = {name: value for name, value in source.env_vars.items() if name.startswith(_OURS)}
    return _read(source, str(file))


def from_toml(
    file: Path, shared: Collection[str], own: Collection[str], section: str | None
) -> dict[str, Any]:
    """What a TOML file says: the shared settings at its top, and those of the table ``section`` before them.

    Args:
        shared: the settings of every command.
        own: what may stand in the table.

    Raises:
        ConfigurationError: it is no TOML, or has a key that is no setting.
    """
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise ConfigurationError(f"{file} is no TOML: {error}.") from None
    # The tables of others are theirs to check: their settings may not even be installed here.
    tables = {name: content.pop(name) for name in SECTIONS if isinstance(content.get(name), dict)}
    table = tables.get(section, {}) if section is not None else {}
    for key in content:
        if key not in shared:
            raise ConfigurationError(f"{file}: {_unknown(key, shared, own, section)}.")
    for key in table:
        if key not in own:
            raise ConfigurationError(f"{file}: {_unknown(key, own, (), section)}.")
    return {**content, **table}


def _unknown(key: str, allowed: Collection[str], own: Collection[str], section: str | None) -> str:
    if key in own:
        return f"{key} belongs into the table [{section}]"
    near = difflib.get_close_matches(key, {*allowed, *own}, n=1)
    if near:
        return f"there is no setting {key!r}; {near[0]} is the nearest"
    tables = " or ".join(f"[{name}]" for name in SECTIONS)
    return f"there is no setting {key!r} (those of one command stand in its table, {tables})"


def _read(source: EnvSettingsSource, where: str) -> dict[str, Any]:
    try:
        # Not DotEnvSettingsSource's own: it adds the names of other programs, to have them refused.
        values = EnvSettingsSource.__call__(source)
    except SettingsError as error:
        reason = error.__cause__ or error
        name = str(error).partition('field "')[2].partition('"')[0]
        raise ConfigurationError(f"{name}: a list is written as JSON ({reason}), in {where}.") from None
    return {_setting(source, name): value for name, value in values.items()}


def _setting(source: EnvSettingsSource, name: str) -> str:
    """A setting with variables of its own comes under the variable's name."""
    for setting, field in source.settings_cls.model_fields.items():
        alias = field.validation_alias
        if isinstance(alias, AliasChoices) and name in alias.choices:
            return setting
    return name
