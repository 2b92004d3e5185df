"""The tensors of model.safetensors, computed from those of a GGUF file while they are written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from math import prod
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.files.gguf.header import GGUFHeader, GGUFTensor
from pagefleet.engine.files.gguf.weights import read_rows
from pagefleet.engine.files.safetensors_writer import StreamedTensor
from pagefleet.engine.loading.gguf.family import EXPERT, GGUFFamily
from pagefleet.engine.loading.gguf.rope import ROPE_TENSORS

__all__ = ["streamed_tensors"]

_TOP: Final = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_NAME: Final = re.compile(r"(?:blk\.(?P<layer>\d+)\.)?(?P<module>\w+)\.(?P<kind>weight|bias)")
_IGNORED: Final = (*ROPE_TENSORS, "attn_rot_embd.weight")
_PARAMETERS: Final = ("attn_sinks", "exp_probs_b")
"""Modules of GGUF that are parameters of other modules in transformers."""
_CHUNK_ELEMENTS: Final = 1 << 20
"""The elements that are dequantised at once: 4 MiB in float32."""


def streamed_tensors(header: GGUFHeader, family: GGUFFamily, head_dim: int) -> dict[str, StreamedTensor]:
    """Return the tensors of the checkpoint by their names in transformers.

    Raises ModelLoadError if the file lacks a tensor of the family, or has one that it does not know.
    """
    _check_complete(header, family)
    found: dict[str, StreamedTensor] = {}
    for tensor in header.tensors.values():
        if tensor.name.endswith(_IGNORED):
            continue
        name = _hf_name(tensor.name, family)
        if EXPERT in name:
            found |= _experts(tensor, name)
        elif ".mlp.experts." in name:
            found[_parameter_name(name)] = _transposed_experts(header, tensor)
        elif ".attn_k_b." in tensor.name:
            found[name] = _joined_keys_and_values(tensor, header.tensors[tensor.name.replace("_k_b", "_v_b")])
        elif ".attn_v_b." not in tensor.name:
            found[name] = _single(tensor, family, head_dim)
    return found


def _check_complete(header: GGUFHeader, family: GGUFFamily) -> None:
    required = ["token_embd.weight", "output_norm.weight"]
    for layer in range(header.get("block_count", 0)):
        required += [f"blk.{layer}.{module}.weight" for module in family.layer]
    if missing := [name for name in required if name not in header.tensors]:
        raise ModelLoadError(
            f"Tensors are missing ({len(missing)}): {', '.join(missing[:3])}; download the file again."
        )


def _hf_name(name: str, family: GGUFFamily) -> str:
    match = _NAME.fullmatch(name)
    modules = family.layer | family.optional if match and match["layer"] else _TOP
    if match is None or match["module"] not in modules:
        raise ModelLoadError(
            f"The tensor {name!r} is not known in the architecture {family.architecture}; use the model's "
            "safetensors checkpoint."
        )
    prefix = f"model.layers.{match['layer']}." if match["layer"] else ""
    kind = "" if match["module"] in _PARAMETERS else f".{match['kind']}"
    return f"{prefix}{modules[match['module']]}{kind}"


def _single(tensor: GGUFTensor, family: GGUFFamily, head_dim: int) -> StreamedTensor:
    shape = tensor.shape
    if tensor.name.endswith("ffn_gate_inp_shexp.weight"):
        shape = (1, *shape)
    if family.interleaves and re.search(r"\.attn_[qk]\.", tensor.name):
        return StreamedTensor(shape, lambda: _deinterleaved(tensor, head_dim))
    if family.norm_shift and tensor.name.endswith("norm.weight"):
        return StreamedTensor(shape, lambda: (chunk - family.norm_shift for chunk in _chunks(tensor)))
    return StreamedTensor(shape, lambda: _chunks(tensor))


def _experts(tensor: GGUFTensor, name: str) -> dict[str, StreamedTensor]:
    """Return the matrices of all experts, which GGUF has in one tensor [experts, out, in]."""
    count, rows, columns = tensor.shape
    return {
        name.replace(EXPERT, str(expert)): StreamedTensor(
            (rows, columns), partial(_chunks, tensor, expert * rows, (expert + 1) * rows)
        )
        for expert in range(count)
    }


# -- the experts of gpt-oss: x W + b, gate and up in turn ------------------------------------------------


def _parameter_name(name: str) -> str:
    return name.removesuffix(".weight").replace(".bias", "_bias")


def _transposed_experts(header: GGUFHeader, tensor: GGUFTensor) -> StreamedTensor:
    """Return [experts, in, out] of [experts, out, in], or a bias [experts, out].

    The outputs of gate and up alternate.
    """
    *_, layer, module, kind = tensor.name.split(".")
    modules = [module] if "down" in module else ["ffn_gate_exps", "ffn_up_exps"]
    parts = [header.tensors[f"blk.{layer}.{each}.{kind}"] for each in modules]
    count, out, *columns = tensor.shape

    def chunks() -> Iterator[NDArray[np.float32]]:
        for expert in range(count):
            rows = (expert, expert + 1) if kind == "bias" else (expert * out, (expert + 1) * out)
            found = [read_rows(part, *rows).reshape(out, -1) for part in parts]
            yield np.stack(found, axis=1).reshape(out * len(parts), -1).T

    return StreamedTensor((count, *columns, out * len(parts)), chunks)


# -- the keys and values of latent attention -------------------------------------------------------------


def _joined_keys_and_values(keys: GGUFTensor, values: GGUFTensor) -> StreamedTensor:
    """Return the projection [heads * (keys + values), rank] of keys [heads, rank, keys] and values [heads,
    values, rank]."""
    count, rank, key_dim = keys.shape
    value_dim = values.shape[1]

    def chunks() -> Iterator[NDArray[np.float32]]:
        for head in range(count):
            yield read_rows(keys, head * rank, (head + 1) * rank).T
            yield read_rows(values, head * value_dim, (head + 1) * value_dim)

    return StreamedTensor((count * (key_dim + value_dim), rank), chunks)


# -- reading ---------------------------------------------------------------------------------------------


def _chunks(
    tensor: GGUFTensor, start: int = 0, stop: int | None = None, step: int = 1
) -> Iterator[NDArray[np.float32]]:
    """Yield rows from `start` to `stop`, as many at once as fit the limit, in multiples of `step`."""
    stop = prod(tensor.shape[:-1]) if stop is None else stop
    count = max(1, _CHUNK_ELEMENTS // (tensor.shape[-1] * step)) * step
    for first in range(start, stop, count):
        yield read_rows(tensor, first, min(first + count, stop))


def _deinterleaved(tensor: GGUFTensor, head_dim: int) -> Iterator[NDArray[np.float32]]:
    """Undo the order of the rows (of a bias: elements) of each head: 0, D / 2, 1, D / 2 + 1 and so on."""
    is_bias = len(tensor.shape) == 1
    for chunk in _chunks(tensor, step=1 if is_bias else head_dim):
        width = 1 if is_bias else chunk.shape[1]
        yield chunk.reshape(-1, head_dim // 2, 2, width).swapaxes(1, 2)
