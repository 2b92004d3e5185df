"""A model file of a few kilobytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

HIDDEN, LAYERS, NUM_TENSORS = 32, 1, 11


def write_gguf(
    path: Path,
    *,
    architecture: str = "llama",
    half: str = "",
    pre: str | None = "gpt-2",
    num_parts: int = 1,
    without: str = "",
    num_rows: int = 0,
    **extra: Any,
) -> dict[str, np.ndarray]:
    """A tiny float32 GGUF checkpoint (but float16 where `half`), its tokenizer byte-level; its tensors.

    In several parts, the files are named as gguf-split names them. With `num_rows` the embedding has this
    many rows, all zero.
    """
    per_part = 0 if num_parts == 1 else -(-NUM_TENSORS // num_parts)
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=per_part)
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(8)
    tokens = ["<|end|>", "Ġ", *"abcdefgh", "ab", "cd"]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (len(tokens) - 1))
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    for key, value in extra.items():
        name = key.replace("__", ".")
        writer.add_string(name, value) if isinstance(value, str) else writer.add_uint32(name, value)
    shapes = {"token_embd": (len(tokens), HIDDEN), "output_norm": (HIDDEN,)}
    for name, shape in {
        "attn_norm": (HIDDEN,),
        "attn_q": (32, HIDDEN),
        "attn_k": (16, HIDDEN),
        "attn_v": (16, HIDDEN),
        "attn_output": (HIDDEN, 32),
        "ffn_norm": (HIDDEN,),
        "ffn_gate": (48, HIDDEN),
        "ffn_up": (48, HIDDEN),
        "ffn_down": (HIDDEN, 48),
    }.items():
        shapes[f"blk.0.{name}"] = shape
    generator = np.random.default_rng(0)
    tensors = {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    if num_rows:
        tensors["token_embd"] = np.zeros((num_rows, HIDDEN), np.float16)
    for name, tensor in tensors.items():
        if name == without:
            continue
        stored = tensor.astype(np.float16, copy=False) if name == half else tensor
        writer.add_tensor(f"{name}.weight", stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors
