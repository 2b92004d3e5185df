"""Converts GGUF files and older tokenizers with transformers, which only this module imports.

    python -m pagefleet.engine.loading.convert gguf <folder> <dtype> <file>...
    python -m pagefleet.engine.loading.convert tokenizer <folder> <source folder>

checkpoint.py runs it as a process. The target folder exists and is empty.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.files.gguf.tokenizer import write_gguf_tokenizer

_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")
"""The tokens that end a text, a turn, and a message that expects a tool's result."""


def convert_gguf(parts: Sequence[Path], target: Path, dtype: torch.dtype) -> None:
    """Write model.safetensors in `dtype`, config.json, generation_config.json and the tokenizer.

    Raises ModelLoadError if a tensor is missing, which transformers would initialise at random.
    """
    first = gguf.GGUFReader(parts[0])
    metadata = {name: field.contents() for name, field in first.fields.items()}
    write_gguf_tokenizer(metadata, target)
    ends = _end_token_ids(metadata)
    (target / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}), encoding="utf-8")
    source = parts[0] if len(parts) == 1 else _joined(parts, target / "joined.gguf")
    model, loaded = AutoModelForCausalLM.from_pretrained(
        str(source.parent), gguf_file=source.name, dtype=dtype, output_loading_info=True
    )
    if missing := sorted(loaded["missing_keys"]):
        raise ModelLoadError(
            f"{len(missing)} tensors are missing: {', '.join(missing[:3])}; download it again."
        )
    config = model.config.to_dict()
    # The converted weights are not quantised.
    config.pop("quantization_config", None)
    config |= {"architectures": [type(model).__name__], "dtype": str(dtype).removeprefix("torch.")}
    config["eos_token_id"] = ends or None
    (target / "config.json").write_text(json.dumps(config, indent=2, default=str), encoding="utf-8")
    state = model.state_dict()
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, target / "model.safetensors")
    if source not in parts:
        source.unlink()


def _end_token_ids(metadata: Mapping[str, Any]) -> list[int]:
    found = [metadata.get(f"tokenizer.ggml.{name}") for name in _ENDS]
    num_tokens = len(metadata["tokenizer.ggml.tokens"])
    return list(dict.fromkeys(each for each in found if each is not None and each < num_tokens))


def _joined(parts: Sequence[Path], path: Path) -> Path:
    """Write all parts into one file, because transformers reads only a single file; return its path."""
    readers = [gguf.GGUFReader(part) for part in parts]
    fields = readers[0].fields
    writer = gguf.GGUFWriter(path, fields["general.architecture"].contents())
    for name, field in fields.items():
        if name.startswith(("GGUF.", "split.")) or name == "general.architecture":
            continue
        item = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], item)
    tensors = [tensor for reader in readers for tensor in reader.tensors]
    for each in tensors:
        data = each.data
        writer.add_tensor_info(each.name, data.shape, data.dtype, data.nbytes, each.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for each in tensors:
        writer.write_tensor_data(each.data)
    writer.close()
    return path


def convert_tokenizer(source: Path, target: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and, if there is one, the chat template."""
    AutoTokenizer.from_pretrained(str(source), use_fast=True).save_pretrained(target)


def main(arguments: list[str]) -> None:
    kind, target, *rest = arguments
    try:
        if kind == "gguf":
            convert_gguf([Path(part) for part in rest[1:]], Path(target), getattr(torch, rest[0]))
        else:
            convert_tokenizer(Path(rest[0]), Path(target))
    except ModelLoadError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
