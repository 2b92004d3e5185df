"""Converts a GGUF model to a folder in Hugging Face format, without holding a whole tensor in memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.files.gguf.header import GGUFHeader
from pagefleet.engine.files.gguf.parts import read_gguf_parts
from pagefleet.engine.files.gguf.tokenizer import check_gguf_tokenizer, write_gguf_tokenizer
from pagefleet.engine.files.gguf.weights import check_gguf_tensors
from pagefleet.engine.files.safetensors_writer import StreamedTensor, file_bytes, write_safetensors
from pagefleet.engine.files.weight_files import WEIGHT_FILE
from pagefleet.engine.loading.gguf.config import config_json, end_token_ids
from pagefleet.engine.loading.gguf.families import family_of
from pagefleet.engine.loading.gguf.tensors import streamed_tensors

__all__ = ["GGUFPlan", "convert_gguf", "plan_conversion"]

_RESERVE_BYTES: Final = 1 << 26
"""Disk space for the tokenizer and what else is written: 64 MiB."""


class GGUFPlan(NamedTuple):
    """What a conversion writes."""

    config: Mapping[str, Any]
    tensors: Mapping[str, StreamedTensor]


def plan_conversion(header: GGUFHeader) -> GGUFPlan:
    """Return what the conversion writes. No weights are read, except rotary factors.

    Raises ModelLoadError if the architecture, a tensor, its type, or the tokenizer is not supported.
    """
    family = family_of(header)
    check_gguf_tensors(header.tensors.values())
    config = config_json(header, family)
    check_gguf_tokenizer(header.metadata)
    return GGUFPlan(config, streamed_tensors(header, family, config["head_dim"]))


def convert_gguf(path: Path, target: Path) -> None:
    """Write model.safetensors, config.json, generation_config.json and the tokenizer to the folder `target`.

    Raises ModelLoadError, also if the disk has too little space.
    """
    header = read_gguf_parts(path, with_vocabulary=True).header
    plan = plan_conversion(header)
    needed = file_bytes(plan.tensors, header.dtype) + _RESERVE_BYTES
    if needed > (free := shutil.disk_usage(target).free):
        raise ModelLoadError(
            f"The converted model needs {needed / 1e9:.1f} GB in {target.parent}, but the disk has "
            f"{free / 1e9:.1f} GB; free space, or choose a different folder for the cache."
        )
    write_gguf_tokenizer(header.metadata, target)
    _write_json(target / "config.json", plan.config)
    _write_json(target / "generation_config.json", {"eos_token_id": end_token_ids(header)})
    write_safetensors(target / WEIGHT_FILE, plan.tensors, header.dtype)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
