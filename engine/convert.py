"""Converts what the engine does not read itself, with transformers: the only module that imports it.

    python -m pagefleet.engine.convert gguf <file> <folder> <dtype>
    python -m pagefleet.engine.convert tokenizer <folder> <folder>

Run as a process by checkpoint.py. The target folder exists and is empty.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def convert_gguf(source: Path, target: Path, dtype: torch.dtype) -> None:
    """Writes model.safetensors in `dtype`, config.json, the tokenizer and the chat template."""
    convert_tokenizer(source.parent, target, gguf_file=source.name)
    model = AutoModelForCausalLM.from_pretrained(str(source.parent), gguf_file=source.name, dtype=dtype)
    config = model.config.to_dict()
    # The weights are quantised no more.
    config.pop("quantization_config", None)
    config |= {"architectures": [type(model).__name__], "dtype": str(dtype).removeprefix("torch.")}
    (target / "config.json").write_text(json.dumps(config, indent=2, default=str), encoding="utf-8")
    state = model.state_dict()
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, target / "model.safetensors")


def convert_tokenizer(source: Path, target: Path, gguf_file: str | None = None) -> None:
    """Writes tokenizer.json, tokenizer_config.json and, where there is one, chat_template.jinja."""
    tokenizer = AutoTokenizer.from_pretrained(str(source), gguf_file=gguf_file, use_fast=True)
    tokenizer.save_pretrained(target)


def main(arguments: list[str]) -> None:
    kind, source, target, *rest = arguments
    if kind == "gguf":
        convert_gguf(Path(source), Path(target), getattr(torch, rest[0]))
    else:
        convert_tokenizer(Path(source), Path(target))


if __name__ == "__main__":
    main(sys.argv[1:])
