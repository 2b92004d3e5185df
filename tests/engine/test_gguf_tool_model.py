"""A real GGUF model with four types of weights: `make tool-model` fetches it; the tests skip without it."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from gguf import GGMLQuantizationType

from ops.tool_model import FILE
from pagefleet.engine.files.gguf.header import read_gguf_header
from pagefleet.engine.llm import LLM
from pagefleet.engine.sampling.sampling_params import SamplingParams

NUM_TOKENS = 24
PROMPTS = [
    "def fibonacci(n):",
    "<|im_start|>user\nWrite a haiku about the sea.<|im_end|>\n<|im_start|>assistant\n",
    "SELECT name, COUNT(*) FROM",
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FILE.exists(), reason="the model is not here: make tool-model"),
]


def test_the_tool_model_generates_what_transformers_generates_from_the_same_file(transformers):
    """In float32, with the weights rounded to bfloat16 by both. transformers dequantises the file itself."""
    kinds = Counter(tensor.kind for tensor in read_gguf_header(FILE).tensors.values())
    assert {GGMLQuantizationType(kind).name for kind in kinds} == {"F32", "Q4_K", "Q5_0", "Q6_K", "Q8_0"}
    llm = LLM(model=str(FILE), dtype="float32", num_blocks=64)
    found = llm.generate(PROMPTS, SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True))
    prompts = [list(output.prompt_token_ids) for output in found]
    del llm
    model = transformers.AutoModelForCausalLM.from_pretrained(
        FILE.parent, gguf_file=FILE.name, dtype=torch.bfloat16
    )
    # transformers' own float() takes the model for a quantised one.
    torch.nn.Module.float(model)
    for prompt, output in zip(prompts, found, strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompt, *output.token_ids]])).logits[0]
        assert list(output.token_ids) == logits[len(prompt) - 1 : -1].argmax(-1).tolist()
