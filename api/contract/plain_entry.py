"""Log entries that have only tokens and texts: nearly all entries of a stream.

They are written and read without a :class:`LogEntry`, which takes several times as long for a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from json.encoder import encode_basestring
from typing import Annotated, NotRequired

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from pagefleet.api.contract.sampling import MAX_CHOICES, MAX_RESULT_TOKENS


class PlainEntry(TypedDict):
    """The fields of a :class:`LogEntry` with the same names."""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")  # type: ignore[misc]

    choice: NotRequired[Annotated[int, Field(ge=0, lt=MAX_CHOICES)]]
    offset: Annotated[int, Field(ge=0, le=MAX_RESULT_TOKENS)]
    token_ids: Annotated[list[int], Field(max_length=MAX_RESULT_TOKENS)]
    texts: Annotated[list[str], Field(max_length=MAX_RESULT_TOKENS)]


def plain_entry_json(choice: int, offset: int, token_ids: Sequence[int], texts: Sequence[str]) -> str:
    """Return what :meth:`LogEntry.to_json` returns for these fields."""
    head = f'{{"choice":{choice},"offset":{offset}' if choice else f'{{"offset":{offset}'
    if len(token_ids) == 1:
        return f'{head},"token_ids":[{token_ids[0]}],"texts":[{encode_basestring(texts[0])}]}}'
    ids, quoted = ",".join(map(str, token_ids)), ",".join(map(encode_basestring, texts))
    return f'{head},"token_ids":[{ids}],"texts":[{quoted}]}}'


def parse_plain_entry(body: str) -> PlainEntry | None:
    """Return the fields; None if the entry has others or is not valid, which :class:`LogEntry` can report."""
    try:
        entry = _adapter().validate_json(body)
    except ValidationError:
        return None
    return entry if len(entry["token_ids"]) == len(entry["texts"]) else None


@cache
def _adapter() -> TypeAdapter[PlainEntry]:
    # Built at its first use: importing stays fast.
    return TypeAdapter(PlainEntry)
