"""``pagefleet replay``: compute an ended job again and compare its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from pagefleet.api.cli.options import given, redis_option
from pagefleet.api.cli.settings_options import setting_option
from pagefleet.api.contract.errors import JobNotFound
from pagefleet.api.protocol.job_record import JobRecord
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.workers.settings import WorkerSettings

if TYPE_CHECKING:
    from pagefleet.engine.text.tokenizer import Tokenizer
    from pagefleet.workers.replay import ReplayedChoice


@click.command()
@click.argument("job_id", metavar="JOB")
@setting_option(
    WorkerSettings,
    "model",
    setting_default=None,
    help="Checkpoint of the job's model: a folder, a GGUF file, a Hugging Face id, or an alias. Default: the "
    "setting `model` if it names the job's model, else the name of the job's model.",
)
@setting_option(
    WorkerSettings, "dtype", setting_default="that of the job", help="Data type of the computation."
)
@setting_option(WorkerSettings, "device")
@redis_option
def replay(job_id: str, **options: Any) -> None:
    """Run an ended job again and compare the tokens.

    The job runs in this process. The exit status is 1 if the tokens differ. The request and the seed come
    from Redis. In float64 the tokens are always the same. In bfloat16 they can differ if the job was
    computed in a batch with others and two tokens were almost equally likely.

    \b
    Examples:
      pagefleet replay 5a31c0d2e4f64b0f8c1a2b3c4d5e6f70
      pagefleet replay 5a31c0d2e4f64b0f8c1a2b3c4d5e6f70 --dtype float64
    """
    # Imported late: the engine imports torch.
    from pagefleet.engine import EngineError, LLMEngine
    from pagefleet.workers import replay as replaying
    from pagefleet.workers.app import engine_config
    from pagefleet.workers.prompting.model_card import make_card

    settings = WorkerSettings.from_files(**given(options))
    record = _read(job_id, settings)
    settings = _settings_of(record, settings, given(options))
    try:
        engine = LLMEngine.from_config(engine_config(settings))
    except EngineError as error:
        raise click.ClickException(str(error)) from error
    try:
        card = make_card(settings, engine)
        if other := replaying.other_weights(record.fingerprints, card.fingerprint):
            raise click.ClickException(
                f"{settings.model} has other weights than the job {job_id}: {other}; set --model."
            )
        for sentence in replaying.differences(record.fingerprints, card.fingerprint):
            click.echo(sentence)
        choices = replaying.replay(record, engine, card)
        for choice in choices:
            click.echo(_comparison(choice, engine.tokenizer))
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
        raise JobNotFound(f"Job {job_id} does not exist, or its result has expired.", job_id=job_id)
    if not record.state.is_final:
        raise click.ClickException(f"Job {job_id} has not ended yet; replay it after its end.")
    return record


def _settings_of(record: JobRecord, settings: WorkerSettings, options: dict[str, Any]) -> WorkerSettings:
    """Return the settings with the model, dtype and backend of the job; the options override them.

    The environment configures a worker, which may serve a different model.
    """
    is_same = record.model in (settings.name, *settings.aliases)
    recorded: dict[str, Any] = {
        "model": settings.model if is_same else record.model,
        "served_name": record.model,
    }
    if record.fingerprints:
        recorded |= {"backend": record.fingerprints[-1].backend, "dtype": record.fingerprints[-1].dtype}
        if recorded["backend"] == "null":
            recorded |= {
                "dtype": "auto",
                "null_weights": record.fingerprints[-1].weights,
                "null_step_time_s": 0.0,
            }
    is_set = {name: getattr(settings, name) for name in settings.model_fields_set}
    return WorkerSettings.load(**(is_set | recorded | options))


def _comparison(choice: ReplayedChoice, tokenizer: Tokenizer) -> str:
    position, num_tokens = choice.first_difference, len(choice.stored)
    if position is None:
        return f"choice {choice.index}: the same, {num_tokens} of {num_tokens} tokens"

    def token(token_ids: Sequence[int]) -> str:
        if position >= len(token_ids):
            return "the end"
        return f"{token_ids[position]} {tokenizer.decode([token_ids[position]])!r}"

    return (
        f"choice {choice.index}: differs at token {position} of {num_tokens}: "
        f"the job has {token(choice.stored)}, the replay {token(choice.replayed)}"
    )
