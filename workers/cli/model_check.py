"""``pagefleet models check``: compare a checkpoint with transformers."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from typing import TYPE_CHECKING

import click
from rich.table import Table

from pagefleet.api.cli.console import make_console

if TYPE_CHECKING:
    from pagefleet.engine.checking.comparison import Comparison, PromptResult

_PROMPT_WIDTH = 32


@click.command()
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="Print the results as one JSON object.")
@click.pass_context
def check(context: click.Context, model: str, as_json: bool) -> None:
    """Compare a checkpoint with transformers in float32.

    MODEL is a folder, a GGUF file, a hub id or an alias. Eight prompts get 32 greedy tokens each; then
    transformers computes the same texts. The exit status is 1 if a token or a logprob differs by more than
    rounding explains.

    \b
    Examples:
      pagefleet models check ./my-checkpoint
      pagefleet models check Qwen/Qwen3-0.6B
      pagefleet models check model.gguf --json | jq .passed
    """
    # Imported late: it imports torch.
    from pagefleet.engine import EngineError
    from pagefleet.engine.checking.comparison import compare

    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        comparison = compare(model, report=lambda stage: click.echo(stage, err=True))
    except EngineError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        results = [{**asdict(result), "passed": result.passed} for result in comparison.results]
        content = {"model": comparison.model, "kind": comparison.kind, "passed": comparison.passed}
        click.echo(json.dumps({**content, "results": results}, indent=2, ensure_ascii=False))
    else:
        _print(comparison)
    context.exit(0 if comparison.passed else 1)


def _print(comparison: Comparison) -> None:
    table = Table("prompt", "prompt tokens", "equal tokens", "largest logprob difference", "verdict")
    for result in comparison.results:
        prompt = result.prompt.replace("\n", " ")
        table.add_row(
            prompt if len(prompt) <= _PROMPT_WIDTH else f"{prompt[: _PROMPT_WIDTH - 1]}…",
            str(result.num_prompt_tokens),
            f"{result.num_equal} of {result.num_tokens}",
            f"{result.largest_difference:.1e}",
            _verdict(result),
        )
    make_console().print(table)
    if comparison.passed:
        click.echo(f"{comparison.model} ({comparison.kind}) generates what transformers generates.")
    else:
        click.echo(f"{comparison.model} ({comparison.kind}) differs from transformers.")


def _verdict(result: PromptResult) -> str:
    if result.same_prompt_tokens is False:
        return "the tokenizers differ"
    if result.is_near_tie:
        return f"equal up to a near tie ({result.margin:.1e})"
    if result.margin is not None:
        return f"differs: transformers' token leads by {result.margin:.2g}"
    return "equal" if result.passed else "equal tokens, other probabilities"
