"""Find a model's card by name, and check whether a request fits the model.

Producers and workers apply the same rules, so that a bare ``send_task`` is checked like a client's request.
Nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import Iterable

from pagefleet.api.contract.errors import ContextTooLong, InvalidRequest, UnknownModel
from pagefleet.api.contract.messages import GenerateRequest, ModelCard


class CardIndex:
    """All cards, found by canonical name or alias."""

    def __init__(self, cards: Iterable[ModelCard]) -> None:
        self.cards = list(cards)
        self._by_name = {alias: card for card in self.cards for alias in card.aliases}
        self._by_name |= {card.name: card for card in self.cards}

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def resolve(self, name: str | None) -> ModelCard:
        """Return the card of a name or an alias; without a name, the only card.

        Raises:
            UnknownModel: no worker has ever served the model here, or the name is missing and the fleet does
                not have exactly one model.
        """
        if name is None and len(self.cards) == 1:
            return self.cards[0]
        if name is None or name not in self._by_name:
            raise self._unknown(name)
        return self._by_name[name]

    def _unknown(self, name: str | None) -> UnknownModel:
        known = ", ".join(sorted(card.name for card in self.cards))
        start = f"start a worker with `pagefleet worker --model {name or 'NAME'}`"
        if not known:
            message = f"model: this fleet has no models yet; {start}."
        elif name is None:
            message = f"model: this fleet has several models; choose one of {known}."
        else:
            message = f"model: {name!r} is unknown; this fleet has {known}. Use one of these, or {start}."
        return UnknownModel(message, param="model")


def check_fits(request: GenerateRequest, card: ModelCard) -> None:
    """Check the limits that do not need a tokenizer.

    Raises:
        ContextTooLong: the token ids leave no room for a generated token in the model's context.
        InvalidRequest: ``max_tokens`` exceeds the context, or a token id is outside the vocabulary.
    """
    if request.sampling.max_tokens > card.max_model_len:
        raise InvalidRequest(
            f"max_tokens: {request.sampling.max_tokens} is more than the context of {card.name}; ask for "
            f"{card.max_model_len} at most.",
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
    """Check the limits of the model's workers. They apply at submit: an accepted job keeps its values.

    Raises:
        InvalidRequest: ``result_ttl_s`` exceeds the model's limit, or ``n`` the tenant's.
    """
    if (request.result_ttl_s or 0) > card.max_result_ttl_s:
        raise InvalidRequest(
            f"result_ttl_s: {request.result_ttl_s} is more than {card.name} allows; ask for "
            f"{card.max_result_ttl_s} s at most.",
            param="result_ttl_s",
        )
    if request.tenant is not None and request.sampling.n > card.max_tenant_depth:
        raise InvalidRequest(
            f"n: {request.sampling.n} choices are more than one tenant may have open; ask for "
            f"{card.max_tenant_depth} at most.",
            param="n",
        )


def check_prompt_length(num_prompt_tokens: int, card: ModelCard, param: str = "prompt") -> None:
    if num_prompt_tokens >= card.max_model_len:
        raise ContextTooLong(
            f"{param}: {num_prompt_tokens} tokens do not fit the context of {card.name}, which has "
            f"{card.max_model_len} for prompt and answer; shorten it, or set truncate_prompt_tokens.",
            param=param,
        )


def check_vocabulary(token_ids: list[int], card: ModelCard, param: str) -> None:
    if token_ids and max(token_ids) >= card.vocab_size:
        raise InvalidRequest(
            f"{param}: token id {max(token_ids)} is outside the vocabulary of {card.name}; the largest id is "
            f"{card.vocab_size - 1}.",
            param=param,
        )
