"""The pip command that installs a package which a feature of the engine needs."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires


def install_command(package: str) -> str:
    """Return the pip command for `package`, in the versions that pagefleet requires."""
    try:
        known = requires("pagefleet") or []
    except PackageNotFoundError:
        known = []
    for requirement in known:
        name, versions, _ = re.split(r"([^\w.-].*)?$", requirement.partition(";")[0].strip(), maxsplit=1)
        if name.lower().replace("_", "-") == package.lower().replace("_", "-"):
            return f"pip install '{name}{(versions or '').strip()}'"
    return f"pip install {package}"
