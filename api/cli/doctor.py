"""``pagefleet doctor``: looks for what is wrong, and says how to mend it."""

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
from pagefleet.api.operate.doctor.examination import examine
from pagefleet.api.operate.doctor.finding import Finding, Level, Patient
from pagefleet.api.operate.doctor.roles import ROLES
from pagefleet.api.protocol.job_store import JobStore

_TIMEOUT_S: Final = 1.9
_INDENT: Final = 28
_STYLES: Final = {Level.OK: "green", Level.WARNING: "yellow", Level.WRONG: "bold red", Level.SKIPPED: "dim"}


@click.command()
@click.option("--model", metavar="M", help="The model to look for; by default the one that settings name.")
@click.option("--role", type=click.Choice(list(ROLES)), help="What the Redis user should be able to do.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@redis_option
@click.pass_context
def doctor(
    ctx: click.Context, redis_url: str | None, model: str | None, role: str | None, as_json: bool
) -> None:
    """Check Redis, the rights of its user, the fleet there, and this machine: processor, CUDA, model, memory.

    Exit status 1 if something is wrong; a warning is none. Nothing is changed, and no check hangs.

    \b
    pagefleet doctor
    pagefleet doctor --json
    pagefleet doctor --role producer --redis-url rediss://producer:...@redis:6379/0
    """
    settings = FleetSettings.from_files(redis_url=redis_url)
    patient = Patient(settings, JobStore(_impatient(settings)), model, role)
    findings = _shown(examine(patient), as_json)
    patient.store.close_connections()
    ctx.exit(int(any(finding.level is Level.WRONG for finding in findings)))


def _impatient(settings: FleetSettings) -> FleetSettings:
    connect_s = min(_TIMEOUT_S, settings.connect_timeout_s)
    socket_s = min(_TIMEOUT_S, settings.socket_timeout_s)
    return settings.model_copy(update={"connect_timeout_s": connect_s, "socket_timeout_s": socket_s})


def _shown(findings: Iterator[Finding], as_json: bool) -> list[Finding]:
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
    """One finding, wrapped beside its name; without trailing blanks, for pipes."""
    room = max(20, width - _INDENT)
    rest = textwrap.wrap(finding.seen, room) or [""]
    first = Text.assemble((f"{finding.level:<9}", _STYLES[finding.level]), f"{finding.check:<18} {rest[0]}")
    lines = [first, *(Text(" " * _INDENT + more) for more in rest[1:])]
    if finding.mend and finding.level is not Level.OK:
        style = "dim" if finding.level is Level.SKIPPED else "cyan"
        wrapped = textwrap.wrap(f"→ {finding.mend}", room, subsequent_indent="  ")
        lines += [Text(" " * _INDENT + more, style=style) for more in wrapped]
    return Text("\n").join(lines)


def _summary(findings: Iterable[Finding]) -> Text:
    levels = [finding.level for finding in findings]
    num_wrong, num_warnings = levels.count(Level.WRONG), levels.count(Level.WARNING)
    if not num_wrong and not num_warnings:
        return Text("\nEverything that was looked at is well.", style="green")
    return Text(f"\n{num_wrong} wrong, {num_warnings} to watch.", style="bold red" if num_wrong else "yellow")
