"""Options made from settings: their types, their help, and that a command passes on only what is given."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click
import pytest
from click.testing import CliRunner
from pydantic import ByteSize, Field, FilePath

from pagefleet.api.cli.settings_options import setting_option, setting_options
from pagefleet.api.config.settings import FleetSettings


class Settings(FleetSettings):
    section = "oven"

    oven_heat: int = Field(180, ge=0, lt=300, description="Temperature, in degrees.")
    oven_wait_s: float | None = Field(None, gt=0, description="Time, in seconds.")
    mode: Literal["top", "both"] = Field("both", description="Which elements heat.")
    size: ByteSize | None = Field(None, description="Size.")
    lights: bool = Field(False, description="Switch the lights on.")
    tins: list[str] = Field(default_factory=list, description="Tins to use.")
    recipe: FilePath | None = Field(None, description="File to read.")
    notes_file: Path | None = Field(None, description="File to write.")
    shelf: Path = Field(Path("/shelf"), description="Directory to use.")


def run(*arguments):
    given = {}

    @click.command(context_settings={"terminal_width": 200})
    @setting_options(Settings, *Settings.model_fields, flags={"oven_wait_s": "--wait-seconds"})
    def bake(**options):
        given.update(options)

    done = CliRunner().invoke(bake, arguments)
    return done, {name: value for name, value in given.items() if value not in (None, ())}


def test_an_option_that_is_not_given_leaves_the_setting_to_the_environment():
    done, given = run()
    assert (done.exit_code, given) == (0, {})


def test_values_arrive_under_the_names_of_the_fields():
    done, given = run(
        "--heat", "200", "--wait-seconds", "0.5", "--mode", "top", "--size", "2GiB", "--lights",
        "--tins", "a", "--tins", "b", "--recipe", "r.md", "--notes-file", "n.md",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert given == {
        "oven_heat": 200, "oven_wait_s": 0.5, "mode": "top", "size": "2GiB", "lights": True,
        "tins": ("a", "b"), "recipe": Path("r.md"), "notes_file": Path("n.md"),
    }  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [
        ("--heat", "300"),
        ("--heat", "-1"),
        ("--wait-seconds", "0"),
        ("--mode", "left"),
        ("--recipe", "/"),
    ],
)
def test_a_value_that_the_setting_would_refuse_is_a_usage_error(arguments):
    done, _ = run(*arguments)
    assert done.exit_code == 2
    assert f"Invalid value for '{arguments[0]}'" in done.output


def test_the_help_has_the_description_and_the_default():
    done, _ = run("--help")
    lines = {line.split()[0]: line.split(maxsplit=1)[1] for line in done.output.splitlines() if "--" in line}
    assert lines["--heat"].endswith("Temperature, in degrees.  [default: 180; 0<=x<300]")
    assert lines["--mode"].endswith("Which elements heat.  [default: both]")
    assert lines["--lights"].endswith("Switch the lights on.")
    assert lines["--recipe"].startswith("FILE ")
    assert lines["--shelf"].endswith("Directory to use.  [default: /shelf]")
    assert lines["--tins"].endswith("Tins to use. Can be given several times.")


def test_a_command_can_change_what_the_setting_says():
    @click.command()
    @setting_option(Settings, "oven_heat", "--oven-heat", default=90, help="Heat.")
    def warm(oven_heat):
        click.echo(oven_heat)

    assert CliRunner().invoke(warm).output == "90\n"
    assert "Heat.  [default: 90; 0<=x<300]" in CliRunner().invoke(warm, ["--help"]).output
