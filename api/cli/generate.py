"""``pagefleet generate``: one job, its text streamed to the terminal."""

from __future__ import annotations

import sys
from typing import Any

import click

from pagefleet.api.cli.options import given, make_client, redis_option, sampling_options
from pagefleet.api.cli.structured import structured_options, structured_outputs
from pagefleet.api.cli.waiting import WaitingNotice


@click.command()
@click.argument("prompt")
@sampling_options
@click.option(
    "--lane",
    type=click.Choice(["interactive", "batch"]),
    default="interactive",
    show_default=True,
    help="batch takes what interactive leaves.",
)
@click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; may be given again.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole result as one JSON object instead.")
@structured_options
@redis_option
def generate(
    prompt: str, redis_url: str | None, as_json: bool, stop: tuple[str, ...], **options: Any
) -> None:
    """Continue PROMPT ("-" reads it from standard input).

    \b
    pagefleet generate "Once upon a time" --max-tokens 64
    cat article.txt | pagefleet generate - --temperature 0 --json
    pagefleet generate "A person:" --json-schema person.schema.json --wind-down
    """
    text = sys.stdin.read() if prompt == "-" else prompt
    structured = structured_outputs(options)
    with make_client(redis_url) as fleet:
        stream = fleet.generate(text, stop=list(stop), structured_outputs=structured, **given(options))
        try:
            with WaitingNotice(fleet, stream) as notice:
                for chunk in stream:
                    notice.heard()
                    if not as_json:
                        click.echo(chunk.text, nl=False)
        except KeyboardInterrupt:
            stream.cancel()
            raise
        click.echo(stream.result().model_dump_json(indent=2) if as_json else "")
