"""LayeredSettings: settings from keyword arguments, the environment, ``./.env`` and a TOML file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar, Final, Self

from pydantic import ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from pagefleet.api.config.settings_files import (
    ENV_FILE,
    TOML_FILE,
    from_env_file,
    from_environment,
    from_toml,
)
from pagefleet.api.contract.errors import ConfigurationError

CONFIG_VARIABLE: Final = "PAGEFLEET_CONFIG"
"""Path of a TOML file to read instead of ``./pagefleet.toml``. If it is empty, commands read no files."""


class LayeredSettings(BaseSettings):
    """Base class of all settings; a field ``name`` is the environment variable ``PAGEFLEET_NAME``."""

    model_config = SettingsConfigDict(
        env_prefix="PAGEFLEET_", env_ignore_empty=True, frozen=True, extra="forbid", populate_by_name=True
    )
    section: ClassVar[str | None] = None
    """The table of a TOML file that holds the settings of this class."""

    @classmethod
    def load(cls, **given: Any) -> Self:
        """Return the settings of the environment, overridden by the keyword arguments that are not None.

        Raises:
            ConfigurationError: a value is wrong; the message has one sentence about the first.
        """
        return cls._checked(_without_none(given), {})

    @classmethod
    def from_files(cls, **given: Any) -> Self:
        """Return the settings as every ``pagefleet`` command reads them.

        In order of precedence: the keyword arguments that are not None, the environment, ``./.env``, and
        ``./pagefleet.toml`` or the file in PAGEFLEET_CONFIG.

        Raises:
            ConfigurationError: a value is wrong; the message names the first and the file that contains it.
        """
        given = _without_none(given)
        first = {**from_environment(cls), **given}
        origins = dict.fromkeys(first.keys() - given.keys(), "the environment")
        values: dict[str, Any] = {}
        for file, content in cls._files():
            for name in content.keys() - first.keys() - values.keys():
                origins[name], values[name] = str(file), content[name]
        return cls._checked({**values, **given}, origins)

    @classmethod
    def files_read(cls) -> list[Path]:
        """Return the files that :meth:`from_files` reads here, in order of precedence."""
        return [file for file, _content in cls._files()]

    @classmethod
    def _files(cls) -> list[tuple[Path, dict[str, Any]]]:
        config_file = os.environ.get(CONFIG_VARIABLE)
        if config_file == "":
            return []
        files: list[tuple[Path, dict[str, Any]]] = []
        if ENV_FILE.is_file():
            files.append((ENV_FILE, from_env_file(cls, ENV_FILE)))
        # A file in PAGEFLEET_CONFIG must exist; from_toml raises otherwise.
        if config_file is not None or TOML_FILE.is_file():
            toml = Path(config_file or TOML_FILE)
            # The base class without a table declares the settings of all commands.
            shared = next(
                base for base in cls.__mro__ if issubclass(base, LayeredSettings) and base.section is None
            )
            files.append((toml, from_toml(toml, shared.model_fields, cls.model_fields, cls.section)))
        return files

    @classmethod
    def _checked(cls, values: dict[str, Any], origins: dict[str, str]) -> Self:
        try:
            return cls(**values)
        except SettingsError:
            from_environment(cls)
            raise
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = "_".join(str(part) for part in first["loc"][:1]).lower().removeprefix("pagefleet_")
            origin = f" (in {origins[name]})" if name in origins else ""
            raise ConfigurationError(
                f"{name}: {first['msg']}{origin}." if name else f"{first['msg']}."
            ) from None


def _without_none(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}
