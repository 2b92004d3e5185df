"""WeightReader: the tensors of a safetensors checkpoint. Does not know models or backends.

Files are memory-mapped: a tensor is read from disk when a backend packs it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.files.expert_weights import ExpertWeights
from pagefleet.engine.files.linear_weights import DENSE, LinearWeights, WeightScheme
from pagefleet.engine.files.schemes.mxfp4 import MXFP4_SCHEME
from pagefleet.engine.files.schemes.registry import read_quantization
from pagefleet.engine.files.weight_files import weight_paths

logger = logging.getLogger(__name__)

_NUM_NAMED = 3
_CHECKED_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""Narrower dtypes are parts of quantised weights; some of them cannot express NaN."""


class WeightReader:
    """Reads the tensors of a folder's *.safetensors files by name, and records which were taken.

    `quantization` is the `quantization_config` of config.json: it decides how linear layers are stored.
    Raises ModelLoadError if the folder has no weights, or lacks a file that its index lists.
    """

    def __init__(self, folder: Path, quantization: Mapping[str, Any] | None = None) -> None:
        self._quantization = read_quantization(quantization)
        self._folder = folder
        paths = weight_paths(folder)
        if ignored := [path.name for path in sorted(folder.glob("*.safetensors")) if path not in paths]:
            names = ", ".join(ignored)
            logger.warning("%s: %s is ignored, because the weights are in %s", folder, names, paths[0].name)
        files = [_open(path) for path in paths]
        self._owners: dict[str, Any] = {name: file for file in files for name in file.keys()}  # noqa: SIM118
        self._untaken = set(self._owners)

    def __contains__(self, name: str) -> bool:
        return name in self._owners

    def assert_complete(self, required: Iterable[str]) -> None:
        """Raise ModelLoadError, which names them, if some of the `required` tensors are missing."""
        if missing := [name for name in required if name not in self._owners]:
            raise ModelLoadError(
                f"{self._folder} has no tensor {', '.join(missing[:_NUM_NAMED])}"
                f"{' and more' if len(missing) > _NUM_NAMED else ''} ({len(missing)} tensors are missing); "
                "download the model again."
            )

    def take(self, name: str, shape: tuple[int, ...] | None = None) -> torch.Tensor:
        """Return a tensor, on the CPU, in the dtype that it is stored in.

        Raises ModelLoadError if it is missing, contains NaN or infinity, or does not have the `shape`.
        """
        tensor = self.take_optional(name, shape)
        if tensor is None:
            raise ModelLoadError(f"{self._folder} has no tensor {name!r}; download the model again.")
        return tensor

    def take_optional(self, name: str, shape: tuple[int, ...] | None = None) -> torch.Tensor | None:
        """Like `take`, but return None if the tensor is missing."""
        if name not in self._owners:
            return None
        self._untaken.discard(name)
        tensor: torch.Tensor = self._owners[name].get_tensor(name)
        self._check_shape(name, tuple(tensor.shape), shape)
        if not is_finite(tensor):
            raise ModelLoadError(
                f"{self._folder}: the tensor {name!r} contains NaN or infinity; download the model again, or "
                "use a different one."
            )
        return tensor

    def has_linear(self, name: str) -> bool:
        """Return whether the checkpoint has the linear layer `name`, which is without ".weight"."""
        scheme = self._quantization.scheme_of(name, self._owners)
        return f"{name}.{scheme.required[0]}" in self._owners

    def take_linear(self, name: str, shape: tuple[int, int] | None = None) -> LinearWeights:
        """Return the weights of the linear layer `name`, and its bias if it has one.

        `shape` is (output features, input features). Raises ModelLoadError if a tensor is missing, contains
        NaN or infinity, or does not match `shape` or the other tensors.
        """
        scheme = self._quantization.scheme_of(name, self._owners)
        parts = self._take_parts(f"{name}.", scheme)
        weights = LinearWeights(parts, scheme, self.take_optional(f"{name}.bias", shape and shape[:1]))
        with self._naming(name):
            found = weights.shape
        self._check_shape(f"{name}.{scheme.required[0]}", found, shape)
        return weights

    def take_experts(
        self, name: str, shape: tuple[int, int, int] | None = None, *, transposed: bool = False
    ) -> ExpertWeights:
        """Return the experts' weights that are stored in one tensor `name`, dense or MXFP4, and their biases
        `name`_bias if they have some.

        `shape` is (experts, output features, input features). `transposed`: the dense tensor is [experts, in,
        out]. Raises ModelLoadError like `take_linear`.
        """
        bias = self.take_optional(f"{name}_bias", shape and shape[:2])
        if f"{name}_blocks" in self._owners:
            experts = ExpertWeights(self._take_parts(f"{name}_", MXFP4_SCHEME), MXFP4_SCHEME, bias)
        else:
            weight = self.take(name)
            experts = ExpertWeights({"weight": weight.mT if transposed else weight}, DENSE, bias)
        with self._naming(name):
            found = experts.shape
        self._check_shape(name, found, shape)
        return experts

    def dense_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the names and tensors that the checkpoint would have without quantisation, one at a time.

        Raises ModelLoadError like `take_linear`.
        """
        for name in self._owners:
            linear, _, part = name.rpartition(".")
            scheme = self._quantization.scheme_of(linear, self._owners)
            if scheme is DENSE or part not in (*scheme.required, *scheme.optional):
                if not self._quantization.is_unused(name):
                    yield name, self.take(name)
            elif part == scheme.required[0]:
                yield f"{linear}.weight", self.take_linear(linear).dense()

    def _take_parts(self, prefix: str, scheme: WeightScheme) -> dict[str, torch.Tensor]:
        parts = {part: self.take(f"{prefix}{part}") for part in scheme.required}
        optional = ((part, self.take_optional(f"{prefix}{part}")) for part in scheme.optional)
        return parts | {part: tensor for part, tensor in optional if tensor is not None}

    @contextmanager
    def _naming(self, layer: str) -> Iterator[None]:
        """Add the folder and the layer to errors."""
        try:
            yield
        except ModelLoadError as error:
            raise ModelLoadError(f"{self._folder}: {layer}: {error}") from error

    def assert_all_taken(self, ignored: Sequence[str] = ()) -> None:
        """Raise ModelLoadError if a tensor was not taken, unless its name begins with one of `ignored`, in
        which "*" stands for any text: a part of the model would be left out silently."""
        # Old checkpoints contain the rotary frequencies, which are computed from config.json.
        unused = (
            name for name in self._untaken if not any(fnmatchcase(name, f"{each}*") for each in ignored)
        )
        left = sorted(
            name
            for name in unused
            if not name.endswith("rotary_emb.inv_freq") and not self._quantization.is_unused(name)
        )
        if left:
            raise ModelLoadError(
                f"{self._folder} has {len(left)} tensors that the architecture in config.json does not use, "
                "such "
                f"as {left[0]!r}: the model has a feature that is not supported."
            )

    def _check_shape(self, name: str, found: tuple[int, ...], expected: tuple[int, ...] | None) -> None:
        if expected is not None and found != expected:
            raise ModelLoadError(
                f"{self._folder}: the tensor {name!r} has the shape {found}, but config.json describes "
                f"{expected}: the files belong to different models. Download the model again."
            )


def is_finite(tensor: torch.Tensor) -> bool:
    """Return whether a tensor has neither NaN nor infinity. Tensors of quantised weights are not checked."""
    if tensor.dtype not in _CHECKED_DTYPES:
        return True
    # A finite sum needs one pass and no memory. If it is not finite, finite values may have overflowed it.
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise ModelLoadError(
            f"{path} is not a readable safetensors file ({error}); download the model again."
        ) from error
