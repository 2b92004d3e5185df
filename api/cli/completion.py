"""``pagefleet completion``: print the script that completes commands, options and models in a shell."""

from __future__ import annotations

from typing import Final

import click
from click.shell_completion import get_completion_class

_SHELLS: Final = ("bash", "zsh", "fish")
_VARIABLE: Final = "_PAGEFLEET_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(_SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script for a shell.

    It completes commands, options, and the models in the Redis of the settings.

    \b
    Examples:
      pagefleet completion bash >> ~/.bash_completion
      pagefleet completion zsh > ~/.zfunc/_pagefleet
      pagefleet completion fish > ~/.config/fish/completions/pagefleet.fish
    """
    complete = get_completion_class(shell)
    assert complete is not None, shell
    click.echo(complete(ctx.find_root().command, {}, "pagefleet", _VARIABLE).source())
