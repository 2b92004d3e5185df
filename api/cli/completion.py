"""``pagefleet completion``: what a shell needs to complete commands, options and models."""

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
    """Print the completion script for SHELL. Models are completed too, from the Redis that settings name.

    \b
    pagefleet completion bash >> ~/.bash_completion
    pagefleet completion zsh > ~/.zfunc/_pagefleet
    pagefleet completion fish > ~/.config/fish/completions/pagefleet.fish
    """
    made = get_completion_class(shell)
    assert made is not None, shell
    click.echo(made(ctx.find_root().command, {}, "pagefleet", _VARIABLE).source())
