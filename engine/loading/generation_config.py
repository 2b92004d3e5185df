"""The default sampling parameters in a checkpoint's generation_config.json."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pagefleet.engine.errors import InvalidRequestError
from pagefleet.engine.files.json_file import read_optional_json_object
from pagefleet.engine.sampling.sampling_params import SamplingParams

__all__ = ["default_sampling", "read_generation_config"]

logger = logging.getLogger(__name__)

_NAMES = {
    "max_new_tokens": "max_tokens",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
}
"""The names in the file that are used, and those of SamplingParams. The same as vLLM's
`ModelConfig.get_diff_sampling_param`."""


def read_generation_config(folder: Path) -> dict[str, Any]:
    """Return the file's content, or {} if there is no such file.

    Raises ModelLoadError if it cannot be read: it may list the end-of-sequence tokens.
    """
    return read_optional_json_object(folder / "generation_config.json")


def default_sampling(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return its sampling parameters by SamplingParams' names, without those that have invalid values."""
    defaults = {}
    for theirs, ours in _NAMES.items():
        value = config.get(theirs)
        if value is None:
            continue
        try:
            SamplingParams(**{ours: value})
        except InvalidRequestError as error:
            logger.warning("generation_config.json: %s is ignored: %s", theirs, error)
            continue
        defaults[ours] = value
    return defaults
