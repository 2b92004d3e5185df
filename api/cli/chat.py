"""``pagefleet chat``: a conversation in the terminal."""

from __future__ import annotations

from typing import Any

import click

from pagefleet.api.cli.options import given, make_client, redis_option, sampling_options
from pagefleet.api.fleet import Fleet


@click.command()
@sampling_options
@click.option("--system", metavar="TEXT", help="A system message to begin with.")
@redis_option
def chat(redis_url: str | None, system: str | None, **options: Any) -> None:
    """Talk to a model. Ctrl-C stops an answer, Ctrl-D (or /exit) leaves, /reset begins anew.

    \b
    pagefleet chat
    pagefleet chat --system "Answer in one sentence." --temperature 0.7
    """
    beginning = [{"role": "system", "content": system}] if system else []
    messages = list(beginning)
    with make_client(redis_url) as fleet:
        while True:
            try:
                text = click.prompt(click.style("you", bold=True), prompt_suffix="> ")
            except click.Abort:
                click.echo()
                return
            if text.strip() == "/exit":
                return
            if text.strip() == "/reset":
                messages = list(beginning)
                continue
            messages.append({"role": "user", "content": text})
            messages.append({"role": "assistant", "content": _answer(fleet, messages, given(options))})


def _answer(fleet: Fleet, messages: list[dict[str, str]], options: dict[str, Any]) -> str:
    """Streams one answer to the terminal; Ctrl-C cancels it and keeps what there is."""
    stream = fleet.chat(messages, **options)
    parts = []
    try:
        for chunk in stream:
            parts.append(chunk.text)
            click.echo(chunk.text, nl=False)
    except KeyboardInterrupt:
        stream.cancel()
    click.echo()
    return "".join(parts)
