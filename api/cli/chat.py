"""``pagefleet chat``: chat with a model in the terminal."""

from __future__ import annotations

from typing import Any, Final

import click

from pagefleet.api.cli.options import given, make_client, redis_option, sampling_options
from pagefleet.api.cli.waiting import WaitingNotice
from pagefleet.api.client.synchronous.fleet import Fleet
from pagefleet.api.contract.errors import FleetError
from pagefleet.api.contract.model_cards import CardIndex

_HELP: Final = """\
/help          list the commands
/model [NAME]  switch to the model NAME; without NAME, list the models
/reset         start a new conversation
/quit          quit, like /exit and Ctrl-D; Ctrl-C stops an answer"""


@click.command()
@sampling_options
@click.option("--system", metavar="TEXT", help="System message of the conversation.")
@redis_option
def chat(redis_url: str | None, system: str | None, **options: Any) -> None:
    """Chat with a model.

    Ctrl-C stops an answer. Type /help for the commands.

    \b
    Examples:
      pagefleet chat
      pagefleet chat --system "Answer in one sentence." --temperature 0.7
    """
    with make_client(redis_url) as fleet:
        conversation = _Conversation(fleet, system, given(options))
        click.echo(f"Chatting with {conversation.model}. /help lists the commands, /quit ends the chat.")
        while True:
            try:
                text = click.prompt(click.style("you", bold=True), prompt_suffix="> ")
            except click.Abort:
                click.echo()
                return
            if text.strip() in ("/quit", "/exit"):
                return
            try:
                conversation.handle(text)
            except FleetError as error:
                click.echo(f"Error: {error.message}", err=True)


class _Conversation:
    """The messages so far and the model that answers.

    Raises:
        UnknownModel: the fleet does not have the model, or has several and no name is given.
    """

    def __init__(self, fleet: Fleet, system: str | None, options: dict[str, Any]) -> None:
        self._fleet = fleet
        self._first_messages = [{"role": "system", "content": system}] if system else []
        self._messages = list(self._first_messages)
        self._options = options
        self.model = ""
        self._use_model(options.pop("model", None))

    def handle(self, text: str) -> None:
        """Run a command, or send a message to the model and print the answer."""
        command, _, argument = text.strip().partition(" ")
        if not command.startswith("/"):
            self._answer(text)
        elif command == "/help":
            click.echo(_HELP)
        elif command == "/reset":
            self._messages = list(self._first_messages)
        elif command == "/model" and argument.strip():
            self._use_model(argument.strip())
            click.echo(f"{self.model} answers from now on.")
        elif command == "/model":
            for card in self._fleet.models():
                click.echo(f"{'*' if card.name == self.model else ' '} {card.name}")
        else:
            click.echo(f"Unknown command {command}; /help lists the commands.")

    def _use_model(self, name: str | None) -> None:
        self.model = CardIndex(self._fleet.models()).resolve(name).name

    def _answer(self, text: str) -> None:
        """Stream one answer to the terminal. Ctrl-C cancels it; the text so far is kept."""
        messages = [*self._messages, {"role": "user", "content": text}]
        stream = self._fleet.chat(messages, model=self.model, **self._options)
        parts = []
        try:
            with WaitingNotice(self._fleet, stream) as notice:
                for chunk in stream:
                    notice.chunk_received()
                    parts.append(chunk.text)
                    click.echo(chunk.text, nl=False)
        except KeyboardInterrupt:
            stream.cancel()
        click.echo()
        self._messages = [*messages, {"role": "assistant", "content": "".join(parts)}]
