"""What model cards allow: names and aliases, and whether a request fits a model.

The producer and the worker apply the same rules, so that a bare ``send_task`` is checked like a client's
request. Nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import Iterable

from pagefleet.api.contract.errors import ContextTooLong, InvalidRequest, UnknownModel
from pagefleet.api.contract.messages import GenerateRequest, ModelCard


class CardIndex:
    """The cards that exist, found by canonical name or alias."""

    def __init__(self, cards: Iterable[ModelCard]) -> None:
        self.cards = list(cards)
        self._by_name = {alias: card for card in self.cards for alias in card.aliases}
        self._by_name |= {card.name: card for card in self.cards}

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def resolve(self, name: str | None) -> ModelCard:
        """The card of a name or an alias; with None, the only card there is.

        Raises:
            UnknownModel: no worker ever served it here, or no name was given and there is a choice.
        """
        known = ", ".join(sorted(card.name for card in self.cards)) or "none yet"
        if name is None:
            if len(self.cards) == 1:
                return self.cards[0]
            raise UnknownModel(f"Name a model: this fleet knows {known}.", param="model")
        if name not in self._by_name:
            raise UnknownModel(
                f"No worker ever served the model {name!r} here (known: {known}); "
                f"start one with `pagefleet worker --model {name}`.",
                param="model",
            )
        return self._by_name[name]


def check_fits(request: GenerateRequest, card: ModelCard) -> None:
    """The limits that are known without a tokenizer.

    Raises:
        ContextTooLong: more token ids than the model's context can hold with one token to generate.
        InvalidRequest: ``max_tokens`` beyond the context, or a token id outside the vocabulary.
    """
    if request.sampling.max_tokens > card.max_model_len:
        raise InvalidRequest(
            f"max_tokens: {request.sampling.max_tokens} is more than the context of {card.name}, "
            f"{card.max_model_len} tokens.",
            param="max_tokens",
        )
    if request.prompt_token_ids is not None:
        num_tokens = len(request.prompt_token_ids)
        check_prompt_length(
            min(num_tokens, request.truncate_prompt_tokens or num_tokens), card, "prompt_token_ids"
        )
        check_vocabulary(request.prompt_token_ids, card, "prompt_token_ids")
    sampling = request.sampling
    check_vocabulary(sampling.stop_token_ids, card, "stop_token_ids")
    check_vocabulary(sampling.allowed_token_ids or [], card, "allowed_token_ids")
    check_vocabulary(list(sampling.logit_bias), card, "logit_bias")


def check_limits(request: GenerateRequest, card: ModelCard) -> None:
    """What a job may take of the server, beside what any job may. A job that was let in before keeps it.

    Raises:
        InvalidRequest: ``result_ttl_s`` beyond the model's limit, or more choices than its tenant may have
            at all.
    """
    if (request.result_ttl_s or 0) > card.max_result_ttl_s:
        raise InvalidRequest(
            f"result_ttl_s: {request.result_ttl_s} is more than {card.name} allows; ask for "
            f"{card.max_result_ttl_s} s at most.",
            param="result_ttl_s",
        )
    if request.tenant is not None and request.sampling.n > card.max_tenant_depth:
        raise InvalidRequest(
            f"n: {request.sampling.n} choices are more than a tenant may have open; ask for "
            f"{card.max_tenant_depth} at most.",
            param="n",
        )


def check_prompt_length(num_prompt_tokens: int, card: ModelCard, param: str = "prompt") -> None:
    if num_prompt_tokens >= card.max_model_len:
        raise ContextTooLong(
            f"The prompt has {num_prompt_tokens} tokens; the context of {card.name} holds "
            f"{card.max_model_len}, prompt and answer together.",
            param=param,
        )


def check_vocabulary(token_ids: list[int], card: ModelCard, param: str) -> None:
    if token_ids and max(token_ids) >= card.vocab_size:
        raise InvalidRequest(
            f"{param}: token id {max(token_ids)} is outside the vocabulary of {card.name} "
            f"({card.vocab_size} tokens).",
            param=param,
        )
