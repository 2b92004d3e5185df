"""Makes docs/compatibility.md from the probes."""

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
# Compatibility with OpenAI's API

`python -m ops.compatibility` writes this page from probes. `tests/gateway/test_compatibility.py` sends each
probe to a running gateway, so each row shows a real answer. *differs* means that the gateway accepts the
parameter with the difference in the last column. The tables have every request parameter of the `openai`
package and every field that the gateway knows.

[sampling.md](sampling.md) has the meaning and range of each parameter, [gateway.md](gateway.md) describes
streams, errors and keys, and [structured-output.md](structured-output.md) describes schemas. The header
`x-pagefleet-ignored` lists ignored fields; `pagefleet serve --strict` refuses them.
"""


def page() -> str:
    """Return the page as Markdown."""
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
    code = f"`{name}`" if " " not in name else name
    return _line((f"{code}{f': {more.strip()}' if more else ''}", probe.support, probe.words))


def _addresses() -> list[str]:
    rows = [_line((f"`{each.method} {each.path}`", each.support, each.words)) for each in ADDRESSES]
    return ["| address | | |", "|---|---|---|", *rows, ""]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")
