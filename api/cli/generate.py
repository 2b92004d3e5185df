"""``pagefleet generate``: run one job and stream its text to the terminal."""

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
    help="Lane of the job; batch jobs run when interactive jobs leave room.",
)
@click.option(
    "--stop", multiple=True, metavar="TEXT", help="Stop before this text. Can be given several times."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object at the end.")
@structured_options
@redis_option
def generate(
    prompt: str, redis_url: str | None, as_json: bool, stop: tuple[str, ...], **options: Any
) -> None:
    """Generate text that continues PROMPT.

    If PROMPT is -, it is read from standard input. Ctrl-C cancels the job.

    \b
    Examples:
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
                    notice.chunk_received()
                    if not as_json:
                        click.echo(chunk.text, nl=False)
        except KeyboardInterrupt:
            stream.cancel()
            raise
        click.echo(stream.result().model_dump_json(indent=2) if as_json else "")
