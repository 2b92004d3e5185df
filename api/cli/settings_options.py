"""click options made from the fields of a settings model, so that a setting is described in one place.

pydantic-settings has its own command line, but it is built on argparse: it knows neither click commands nor
shell completion. Libraries that turn pydantic models into click options build the model from the options
alone; here the environment and the files supply the other values (``from_files``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, TypeVar, Union, get_args, get_origin

import click
from click.types import OptionHelpExtra
from pydantic import ByteSize, FilePath
from pydantic.fields import FieldInfo

from pagefleet.api.config.settings import FleetSettings

F = TypeVar("F", bound=Callable[..., Any])

_RANGES: Final[Mapping[type, Callable[..., click.ParamType[Any]]]] = {
    int: click.IntRange,
    float: click.FloatRange,
}


class SettingOption(click.Option):
    """An option whose value is None unless the user gives it; ``--help`` shows the default of the setting."""

    def __init__(self, declarations: list[str], *, setting_default: str | None, **attributes: Any) -> None:
        super().__init__(declarations, **attributes)
        self._setting_default = setting_default

    def get_help_extra(self, ctx: click.Context) -> OptionHelpExtra:
        extra = super().get_help_extra(ctx)
        if self._setting_default is not None:
            extra = {"default": self._setting_default, **extra}
        return extra


def setting_option(
    settings: type[FleetSettings], name: str, flag: str | None = None, **changes: Any
) -> Callable[[F], F]:
    """Return a decorator that adds the option for one field. The command gets it under the field's name.

    Args:
        flag: the name of the option; by default that of the field, without the name of the section.
        changes: attributes of ``click.Option`` that replace those made from the field.
    """
    field = settings.model_fields[name]
    if flag is None:
        flag = f"--{name.removeprefix(f'{settings.section}_').replace('_', '-')}"
    attributes = {
        "help": field.description,
        "setting_default": _default(field),
        **_type(name, field),
        **changes,
    }
    attributes["show_default"] = "default" in changes

    def add(command: F) -> F:
        return click.option(flag, name, cls=SettingOption, **attributes)(command)

    return add


def setting_options(
    settings: type[FleetSettings], *names: str, flags: Mapping[str, str] | None = None
) -> Callable[[F], F]:
    """Return a decorator that adds the options for several fields, in this order in ``--help``."""

    def add(command: F) -> F:
        for name in reversed(names):
            command = setting_option(settings, name, (flags or {}).get(name))(command)
        return command

    return add


def _type(name: str, field: FieldInfo) -> dict[str, Any]:
    """The attributes of ``click.Option`` that follow from the type of the field."""
    kind = _plain_type(field.annotation)
    if get_origin(kind) is Literal:
        return {"type": click.Choice(get_args(kind))}
    if get_origin(kind) is list:
        return {"multiple": True, "help": f"{field.description} Can be given several times."}
    if kind is bool:
        return {"is_flag": True, "default": None}
    if kind is ByteSize:
        return {"metavar": "SIZE"}
    if kind in _RANGES:
        return {"type": _RANGES[kind](**_limits(field))}
    if kind is Path:
        is_file = name.endswith("_file") or FilePath in get_args(field.annotation)
        metavar = "FILE" if is_file else "DIRECTORY"
        return {"type": click.Path(dir_okay=not is_file, path_type=Path), "metavar": metavar}
    return {}


def _plain_type(annotation: Any) -> Any:
    """The type without ``| None`` and ``Annotated``."""
    if get_origin(annotation) in (Union, UnionType):
        (annotation,) = (kind for kind in get_args(annotation) if kind is not NoneType)
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _limits(field: FieldInfo) -> dict[str, Any]:
    limits: dict[str, Any] = {}
    for constraint in field.metadata:
        for attribute, bound in (("ge", "min"), ("gt", "min"), ("le", "max"), ("lt", "max")):
            value = getattr(constraint, attribute, None)
            if value is not None:
                limits |= {bound: value, f"{bound}_open": attribute in ("gt", "lt")}
    return limits


def _default(field: FieldInfo) -> str | None:
    """The default as text; None for flags, lists and fields without a default."""
    value = field.get_default(call_default_factory=True)
    return str(value) if isinstance(value, str | int | float | Path) and not isinstance(value, bool) else None
