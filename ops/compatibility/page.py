"""docs/compatibility.md, from the probes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ops.compatibility.addresses import ADDRESSES
from ops.compatibility.chat import CHAT
from ops.compatibility.completions import COMPLETIONS
from ops.compatibility.probe import Endpoint, Probe
from ops.compatibility.tokens import DETOKENIZE, TOKENIZE

PAGE: Final = Path(__file__).parents[2] / "docs" / "compatibility.md"
ENDPOINTS: Final = (CHAT, COMPLETIONS, TOKENIZE, DETOKENIZE)
_HEAD: Final = """\
# What is compatible with OpenAI

Written by `python -m ops.compatibility` from the probes there, each of which
`tests/gateway/test_compatibility.py` sends to a running gateway: a row is what was answered. *differs* is
yes, and how. Every parameter of the `openai` package's requests has a row, and every field that the gateway
knows.

What a parameter does and its range: [sampling.md](sampling.md); streams, errors and keys:
[gateway.md](gateway.md); schemas: [structured-output.md](structured-output.md). *Ignored* is always named, in
the header `x-pagefleet-ignored`; `pagefleet serve --strict` refuses it.
"""


def page() -> str:
    """The whole page, as Markdown."""
    parts = [_HEAD]
    for endpoint in ENDPOINTS:
        parts += [f"## POST {endpoint.path}\n", *_tables(endpoint)]
    parts += ["## Everything else\n", *_addresses()]
    return "\n".join(parts)


def _tables(endpoint: Endpoint) -> list[str]:
    lines = []
    for title, probes in endpoint.groups.items():
        lines += [f"| {title} | | |", "|---|---|---|", *map(_row, probes), ""]
    return lines


def _row(probe: Probe) -> str:
    name, _, more = probe.parameter.partition(":")
    spelled = f"`{name}`" if " " not in name else name
    return _line((f"{spelled}{f': {more.strip()}' if more else ''}", probe.support, probe.words))


def _addresses() -> list[str]:
    rows = [_line((f"`{each.method} {each.path}`", each.support, each.words)) for each in ADDRESSES]
    return ["| address | | |", "|---|---|---|", *rows, ""]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")
