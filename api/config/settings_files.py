"""Readers for files with settings: ``./.env`` and a TOML file. ``settings.py`` decides which files are read.

Several programs share a ``.env`` file, so variables without our prefix are ignored. The TOML file belongs to
pagefleet, so an unknown key in it is an error.
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
"""The tables of a TOML file: one for each class of settings that extends ``FleetSettings``."""
_OURS: Final = "pagefleet_"


def from_environment(settings: type[BaseSettings]) -> dict[str, Any]:
    """Return the values in the environment by setting. Raises: ConfigurationError: a list is not JSON."""
    return _read(EnvSettingsSource(settings), "the environment")


def from_env_file(settings: type[BaseSettings], file: Path) -> dict[str, Any]:
    """Return the values of the ``PAGEFLEET_*`` variables in a ``.env`` file by setting.

    Other variables are ignored, REDIS_URL too: it may belong to another program.

    Raises:
        ConfigurationError: the file cannot be read, or a list is not JSON.
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
    """Return the values in a TOML file: those at its top level, overridden by those in the table ``section``.

    Args:
        shared: the settings that are allowed at the top level.
        own: the settings that are allowed in the table.

    Raises:
        ConfigurationError: the file is not TOML, or contains an unknown key.
    """
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise ConfigurationError(f"{file} is not valid TOML: {error}.") from None
    # The other tables are not checked: the modules of their settings may not be installed here.
    tables = {name: content.pop(name) for name in SECTIONS if isinstance(content.get(name), dict)}
    table = tables.get(section, {}) if section is not None else {}
    for key, value in content.items():
        if key not in shared and isinstance(value, dict):
            raise ConfigurationError(f"{file}: {_unknown_table(key)}.")
        if key not in shared:
            raise ConfigurationError(f"{file}: {_unknown(key, shared, own, section)}.")
    for key in table:
        if key not in own:
            raise ConfigurationError(f"{file}: {_unknown(key, own, (), section)}.")
    return {**content, **table}


def _unknown(key: str, allowed: Collection[str], own: Collection[str], section: str | None) -> str:
    if key in own:
        return f"move {key} to the table [{section}]"
    similar = difflib.get_close_matches(key, {*allowed, *own}, n=1)
    if similar:
        return f"unknown setting {key!r}; the most similar setting is {similar[0]}"
    tables = " or ".join(f"[{name}]" for name in SECTIONS)
    return f"unknown setting {key!r}; settings of one command belong to its table: {tables}"


def _unknown_table(name: str) -> str:
    similar = difflib.get_close_matches(name, SECTIONS, n=1)
    *others, last = (f"[{section}]" for section in SECTIONS)
    tables = f"{', '.join(others)} and {last}"
    hint = f"the most similar table is [{similar[0]}]" if similar else f"the tables are {tables}"
    return f"unknown table [{name}]; {hint}"


def _read(source: EnvSettingsSource, origin: str) -> dict[str, Any]:
    try:
        # DotEnvSettingsSource.__call__ also returns unknown names, which pydantic would reject.
        values = EnvSettingsSource.__call__(source)
    except SettingsError as error:
        reason = error.__cause__ or error
        name = str(error).partition('field "')[2].partition('"')[0]
        raise ConfigurationError(f"{name}: write the list as JSON ({reason}), in {origin}.") from None
    return {_setting(source, name): value for name, value in values.items()}


def _setting(source: EnvSettingsSource, name: str) -> str:
    """Return the setting for a value's name: a field with aliases is reported under its alias."""
    for setting, field in source.settings_cls.model_fields.items():
        alias = field.validation_alias
        if isinstance(alias, AliasChoices) and name in alias.choices:
            return setting
    return name
