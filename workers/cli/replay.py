"""``pagefleet replay``: does a job come out the same again?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from pagefleet.api.cli.options import given, redis_option
from pagefleet.api.contract.errors import JobNotFound
from pagefleet.api.protocol.job_record import JobRecord
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.workers.settings import WorkerSettings

if TYPE_CHECKING:
    from pagefleet.engine.text.tokenizer import Tokenizer
    from pagefleet.workers.recovery.replay import ReplayedChoice


@click.command()
@click.argument("job_id", metavar="JOB")
@click.option(
    "--model", metavar="M", help="Where that model is.  [default: as the settings say, else its name]"
)
@click.option("--dtype", help="What to compute in.  [default: as the job was]")
@click.option("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, ...")
@redis_option
def replay(job_id: str, **options: Any) -> None:
    """Compute the ended job JOB again in this process, from its stored request and seed, and say token for
    token whether it is the same. Exit status 1 if it is not. What was computed in company in bfloat16 may
    differ where two tokens were nearly equally likely; in float64 it does not.

    \b
    pagefleet replay 5a31c0d2e4f64b0f8c1a2b3c4d5e6f70
    pagefleet replay 5a31c0d2e4f64b0f8c1a2b3c4d5e6f70 --dtype float64
    """
    # Only now: the engine.
    from pagefleet.engine import EngineError, LLMEngine
    from pagefleet.workers.app import engine_config
    from pagefleet.workers.prompting.model_card import make_card
    from pagefleet.workers.recovery import replay as replaying

    settings = WorkerSettings.from_files(**given(options))
    record = _read(job_id, settings)
    settings = _as_it_was(record, settings, given(options))
    try:
        engine = LLMEngine.from_config(engine_config(settings))
    except EngineError as error:
        raise click.ClickException(str(error)) from error
    try:
        card = make_card(settings, engine)
        if other := replaying.other_weights(record.fingerprints, card.fingerprint):
            raise click.ClickException(f"{settings.model} is not what computed the job {job_id}: {other}.")
        for sentence in replaying.differences(record.fingerprints, card.fingerprint):
            click.echo(sentence)
        choices = replaying.replay(record, engine, card)
        for choice in choices:
            click.echo(_told(choice, engine.tokenizer))
    finally:
        engine.close()
    if any(choice.first_difference is not None for choice in choices):
        raise click.exceptions.Exit(1)


def _read(job_id: str, settings: WorkerSettings) -> JobRecord:
    store = JobStore(settings)
    try:
        record = store.read(job_id)
    finally:
        store.close_connections()
    if record is None:
        raise JobNotFound(f"There is no job {job_id}, or its result has expired.", job_id=job_id)
    if not record.state.is_final:
        raise click.ClickException(f"The job {job_id} has not ended yet: replay it afterwards.")
    return record


def _as_it_was(record: JobRecord, settings: WorkerSettings, options: dict[str, Any]) -> WorkerSettings:
    """The settings with what the job was computed with: its model, dtype and backend. Options go before it;
    what else is set is a worker's, which may serve another model, and only says where this one is."""
    is_it = record.model in (settings.name, *settings.aliases)
    was: dict[str, Any] = {"model": settings.model if is_it else record.model, "served_name": record.model}
    if record.fingerprints:
        was |= {"backend": record.fingerprints[-1].backend, "dtype": record.fingerprints[-1].dtype}
        if was["backend"] == "null":
            was |= {"dtype": "auto", "null_weights": record.fingerprints[-1].weights, "null_step_time_s": 0.0}
    is_set = {name: getattr(settings, name) for name in settings.model_fields_set}
    return WorkerSettings.load(**(is_set | was | options))


def _told(choice: ReplayedChoice, tokenizer: Tokenizer) -> str:
    position, num_tokens = choice.first_difference, len(choice.stored)
    if position is None:
        return f"choice {choice.index}: the same, {num_tokens} of {num_tokens} tokens"

    def token(token_ids: Sequence[int]) -> str:
        if position >= len(token_ids):
            return "nothing"
        return f"{token_ids[position]} {tokenizer.decode([token_ids[position]])!r}"

    return (
        f"choice {choice.index}: differs at token {position} of {num_tokens}: "
        f"it was {token(choice.stored)}, and now is {token(choice.replayed)}"
    )
