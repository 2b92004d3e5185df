"""Readers of the JSON files of a checkpoint, which users may have edited."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pagefleet.engine.errors import ModelLoadError


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`. A byte order mark, which some editors add, is skipped.

    Raises ModelLoadError if the file is missing, is not UTF-8 text, is not JSON, or is not an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ModelLoadError(
            f"{path} cannot be read ({error.strerror}); check the path, or download the model again."
        ) from error
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(
            f"{path} is not valid JSON ({error}); correct it, or download the file again."
        ) from error
    if not isinstance(content, dict):
        raise ModelLoadError(
            f"{path} must contain a JSON object, not {_kind(content)}; download the file again."
        )
    return content


def read_optional_json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`, or {} if there is no such file. Raises ModelLoadError as above."""
    return read_json_object(path) if path.is_file() else {}


def _kind(content: Any) -> str:
    if content is None:
        return "null"
    return "a list" if isinstance(content, list) else f"a {type(content).__name__}"
