"""``pagefleet``: the group of all commands, found through entry points.

A command whose extra is not installed is listed too, and prints the pip command that installs it.
"""

from __future__ import annotations

import signal
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points, version
from typing import Any, Final

import click

from pagefleet.api.config.extras import missing_extras, pip_command
from pagefleet.api.contract.errors import FleetError, MissingExtra

COMMAND_GROUP: Final = "pagefleet.commands"

_INTERRUPTED: Final = 128 + signal.SIGINT


class CommandGroup(click.Group):
    """A group that imports a command when it is first needed.

    Args:
        entry_group: the group of entry points that has the commands.
    """

    def __init__(self, *args: Any, entry_group: str = COMMAND_GROUP, **options: Any) -> None:
        super().__init__(*args, **options)
        self._entry_group = entry_group

    @cached_property
    def _found(self) -> dict[str, EntryPoint]:
        return {entry.name: entry for entry in entry_points(group=self._entry_group)}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*self.commands, *self._found})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = self._found.get(cmd_name)
        if entry is None:
            return super().get_command(ctx, cmd_name)
        if missing := missing_extras(entry):
            groups = [] if ctx.parent is None else [str(ctx.info_name)]
            return _not_installed(" ".join([*groups, cmd_name]), missing)
        command: click.Command = entry.load()
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Print our errors without a traceback, and exit after Ctrl-C with the status that shells expect."""
        try:
            return super().invoke(ctx)
        except FleetError as error:
            raise click.ClickException(error.message) from error
        except (KeyboardInterrupt, click.Abort):
            click.echo(err=True)
            ctx.exit(_INTERRUPTED)


def _not_installed(name: str, extras: list[str]) -> click.Command:
    """Return a command that prints how to install the one with this name, such as "models check"."""
    install = pip_command(extras)

    @click.command(
        name.split()[-1],
        help=f"Not installed: run {install}",
        short_help=f"Not installed; `pagefleet {name}` shows how to install it",
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )
    def explain() -> None:
        raise MissingExtra(f"`pagefleet {name}` is not installed: run {install}")

    return explain


@click.command(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("pagefleet"), prog_name="pagefleet")
def main() -> None:
    """Self-hosted LLM inference as durable jobs, on Celery and Redis.

    See `pagefleet COMMAND --help` for the options and examples of a command.

    \b
    Examples:
      pagefleet up                            start a local stack: Redis, a worker, Flower, the gateway
      pagefleet generate "Once upon a time"   send one job to it
      pagefleet top                           watch workers and queues
      pagefleet doctor                        find problems and their fixes
    """


if __name__ == "__main__":
    main()
