"""ConfigReader: typed access to a checkpoint's config.json. Does not know families."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch

from pagefleet.engine.backends.activations import ACTIVATIONS
from pagefleet.engine.errors import ModelLoadError

__all__ = ["ConfigReader", "checkpoint_dtype"]

_MAX_INTEGER: Final = 2**31 - 1
_MAX_LAYERS: Final = 10_000
"""The description of a model has an entry for each layer."""

OUTER = ("dtype", "torch_dtype", "tie_word_embeddings")
"""Values that a nested object may leave to the outer one."""


class ConfigReader:
    """Reads values of config.json by name.

    Every method raises ModelLoadError, which names the value, if it is missing or has the wrong type.

    Args:
        content: the content of config.json.
        max_model_len: the context length that the user wants, in tokens. None: the model's.
    """

    def __init__(self, content: Mapping[str, Any], max_model_len: int | None = None) -> None:
        self.content = content
        self.max_model_len = max_model_len

    def part(self, name: str) -> ConfigReader:
        """Return the reader of a nested object, such as `text_config`; this reader if there is none."""
        nested = self.content.get(name)
        if not isinstance(nested, Mapping):
            return self
        given = {key: value for key, value in nested.items() if value is not None or key not in OUTER}
        outer = {key: self.content[key] for key in OUTER if self.content.get(key) is not None}
        # The head belongs to the outer model; the inner object may have the default of its own class.
        tied = {key: value for key, value in outer.items() if key == "tie_word_embeddings"}
        return ConfigReader({**outer, **given, **tied}, self.max_model_len)

    def renamed(self, names: Mapping[str, str]) -> ConfigReader:
        """Return a reader in which values have the usual names too, given as {usual name: name of the
        family}."""
        usual = {name: self.content[other] for name, other in names.items() if other in self.content}
        return ConfigReader({**self.content, **usual}, self.max_model_len)

    def with_defaults(self, **values: Any) -> ConfigReader:
        """Return a reader that has `values` for what config.json leaves out.

        Checkpoints leave out what transformers' config class has as a default. A null is kept.
        """
        return ConfigReader({**values, **self.content}, self.max_model_len)

    def has(self, name: str) -> bool:
        """Return whether the value exists and is not null."""
        return self.content.get(name) is not None

    def integer(self, name: str, default: int | None = None) -> int:
        """Return a number of at least 1."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ModelLoadError(
                f"config.json: {name} must be an integer, not {value!r}; download the file again."
            )
        if value < 1:
            raise ModelLoadError(f"config.json: {name} must be at least 1, not {value!r}.")
        largest = _MAX_LAYERS if name == "num_hidden_layers" else _MAX_INTEGER
        if value > largest:
            raise ModelLoadError(
                f"config.json: {name} must be at most {largest}, not {value!r}; download the file again."
            )
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ModelLoadError(
                f"config.json: {name} must be a number, not {value!r}; download the file again."
            )
        return float(value)

    def flag(self, name: str, *, default: bool = False) -> bool:
        return bool(self._get(name, default))

    def items(self, name: str, length: int) -> list[Any]:
        """Return a list of `length` values, such as one for each layer."""
        value = self._get(name, None)
        if not isinstance(value, list) or len(value) != length:
            raise ModelLoadError(
                f"config.json: {name} must be a list of {length} values; download the file again."
            )
        return value

    def activation(self, name: str = "hidden_act", default: str = "silu") -> str:
        """Return the name of an activation function that the backends have."""
        value = self._get(name, default)
        if not isinstance(value, str) or value not in ACTIVATIONS:
            raise ModelLoadError(
                f"config.json: {name} {value!r} is not supported, only "
                f"{', '.join(sorted(ACTIVATIONS))}; use a "
                "different model."
            )
        return value

    def refuse(self, name: str, reason: str) -> None:
        """Raise ModelLoadError if the value exists and is true: the family's file does not support it."""
        if self.content.get(name):
            raise ModelLoadError(f"config.json: {name} {self.content[name]!r} is not supported: {reason}.")

    @property
    def head_dim(self) -> int:
        """The elements of an attention head."""
        return self.integer("head_dim", self.integer("hidden_size") // self.integer("num_attention_heads"))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the checkpoint."""
        return checkpoint_dtype(self.content)

    def _get(self, name: str, default: Any) -> Any:
        value = self.content.get(name)
        value = default if value is None else value
        if value is None:
            raise ModelLoadError(f"config.json has no {name!r}; use the checkpoint of a decoder model.")
        return value


def checkpoint_dtype(config: Mapping[str, Any]) -> torch.dtype:
    """Return the dtype of the checkpoint. Raises ModelLoadError if it is not a floating point dtype of
    torch."""
    text = config.get("text_config")
    inner = text if isinstance(text, Mapping) else {}
    names = (each.get(key) for each in (config, inner) for key in ("dtype", "torch_dtype"))
    name = next(filter(None, names), "float32")
    dtype = getattr(torch, str(name).removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ModelLoadError(
            f"config.json: dtype {name!r} is not a floating point dtype of torch; use bfloat16, float16 or "
            "float32."
        )
    return dtype
