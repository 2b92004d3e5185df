"""``pagefleet doctor``: check an installation and a fleet, and report problems with their fixes."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Iterable, Iterator
from typing import Final

import click
from rich.text import Text

from pagefleet.api.cli.console import make_console
from pagefleet.api.cli.options import redis_option
from pagefleet.api.config.settings import FleetSettings
from pagefleet.api.operate.doctor.finding import Finding, Level, Target
from pagefleet.api.operate.doctor.roles import ROLES
from pagefleet.api.operate.doctor.runner import run_checks
from pagefleet.api.protocol.job_store import JobStore

_TIMEOUT_S: Final = 1.9
_INDENT: Final = 28
_STYLES: Final = {Level.OK: "green", Level.WARNING: "yellow", Level.ERROR: "bold red", Level.SKIPPED: "dim"}


@click.command()
@click.option("--model", metavar="MODEL", help="Model to check. Default: the setting `model`.")
@click.option(
    "--role",
    type=click.Choice(list(ROLES)),
    help="Check that the Redis user has the rights of this role. Default: any role.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as one JSON object.")
@redis_option
@click.pass_context
def doctor(
    ctx: click.Context, redis_url: str | None, model: str | None, role: str | None, as_json: bool
) -> None:
    """Check Redis, the fleet and this machine for problems.

    The checks cover the Redis server and the rights of its user, the workers, and the processor, CUDA, model
    and memory of this machine. Each problem is followed by the command or setting that fixes it. The checks
    change nothing and have time limits. The exit status is 1 if there is an error; warnings do not count.

    \b
    Examples:
      pagefleet doctor
      pagefleet doctor --json
      pagefleet doctor --role producer --redis-url rediss://producer:PASSWORD@redis.internal:6379/0
    """
    settings = FleetSettings.from_files(redis_url=redis_url)
    target = Target(settings, JobStore(_with_short_timeouts(settings)), model, role)
    findings = _print_findings(run_checks(target), as_json)
    target.store.close_connections()
    ctx.exit(int(any(finding.level is Level.ERROR for finding in findings)))


def _with_short_timeouts(settings: FleetSettings) -> FleetSettings:
    connect_s = min(_TIMEOUT_S, settings.connect_timeout_s)
    socket_s = min(_TIMEOUT_S, settings.socket_timeout_s)
    return settings.model_copy(update={"connect_timeout_s": connect_s, "socket_timeout_s": socket_s})


def _print_findings(findings: Iterator[Finding], as_json: bool) -> list[Finding]:
    if as_json:
        found = list(findings)
        counts = {level: sum(each.level is level for each in found) for level in Level}
        click.echo(json.dumps({**counts, "findings": [dataclasses.asdict(each) for each in found]}, indent=2))
        return found
    console, found = make_console(), []
    for finding in findings:
        found.append(finding)
        console.print(_text(finding, console.width), soft_wrap=True)
    console.print(_summary(found))
    return found


def _text(finding: Finding, width: int) -> Text:
    """One finding, wrapped to the right of its name; without trailing blanks, for pipes."""
    room = max(20, width - _INDENT)
    rest = textwrap.wrap(finding.message, room) or [""]
    first = Text.assemble((f"{finding.level:<9}", _STYLES[finding.level]), f"{finding.check:<18} {rest[0]}")
    lines = [first, *(Text(" " * _INDENT + more) for more in rest[1:])]
    if finding.fix and finding.level is not Level.OK:
        style = "dim" if finding.level is Level.SKIPPED else "cyan"
        wrapped = textwrap.wrap(f"→ {finding.fix}", room, subsequent_indent="  ")
        lines += [Text(" " * _INDENT + more, style=style) for more in wrapped]
    return Text("\n").join(lines)


def _summary(findings: Iterable[Finding]) -> Text:
    levels = [finding.level for finding in findings]
    num_errors, num_warnings = levels.count(Level.ERROR), levels.count(Level.WARNING)
    if not num_errors and not num_warnings:
        return Text("\nNo problems found.", style="green")
    text = f"\n{_count(num_errors, 'error')}, {_count(num_warnings, 'warning')}"
    return Text(text, style="bold red" if num_errors else "yellow")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
