"""What is fetched of a model on the hub, by the real huggingface_hub from a hub on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from fake_hub import fake_hub

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 6,
    "max_position_embeddings": 64,
}
CODE = {"auto_map": {"AutoModelForCausalLM": "m.M"}}
INDEX = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
SHARDS = {name: name.encode() for name in INDEX["weight_map"].values()}


def files(config: dict[str, Any], **more: bytes) -> dict[str, bytes]:
    return {"config.json": json.dumps(config).encode(), "tokenizer.json": b"{}", "README.md": b"#", **more}


MODELS = {
    "o/whole": files(LLAMA)
    | {"model.safetensors": b"w", "consolidated.safetensors": b"x", "pytorch_model.bin": b"y"},
    "o/sharded": files(LLAMA)
    | SHARDS
    | {"model.safetensors.index.json": json.dumps(INDEX).encode(), "old.safetensors": b"x"},
    "o/single": files(LLAMA) | {"weights.safetensors": b"w"},
    "o/several": files(LLAMA) | {"a.safetensors": b"w", "b.safetensors": b"w"},
    "o/foreign": files({"architectures": ["MambaForCausalLM"], "model_type": "mamba"})
    | {"model.safetensors": b"w"},
    "o/quantised": files(LLAMA | {"quantization_config": {"quant_method": "bitsandbytes"}})
    | {"model.safetensors": b"w"},
    "o/own-code": files(LLAMA | CODE) | {"model.safetensors": b"w", "m.py": b"raise SystemExit"},
    "o/only-code": files({"architectures": ["MyModel"], "model_type": "mine"} | CODE)
    | {"model.safetensors": b"w"},
    "o/empty": {"README.md": b"#"},
}
SCRIPT = """
import json, sys
from pagefleet.engine.loading.checkpoint import locate, resolve
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = sorted(path.name for path in resolve(name).folder.iterdir())
        assert locate(name).folder == resolve(name).folder
    except Exception as error:
        found[name] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
"""


def resolved(names: list[str], home: Path, **env: str) -> dict[str, Any]:
    """In a process of its own: huggingface_hub reads its environment when it is imported."""
    given = os.environ | {"HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"} | env
    command = [sys.executable, "-c", SCRIPT, *names]
    result = subprocess.run(command, env=given, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_a_model_is_checked_before_its_weights_are_fetched_and_only_what_is_needed_is(tmp_path):
    with fake_hub(MODELS) as (address, fetched):
        found = resolved(list(MODELS), tmp_path, HF_ENDPOINT=address)
        weights = {name for name in fetched if not name.endswith(("json", "md"))}
    small = ["config.json", "tokenizer.json"]
    assert found["o/whole"] == sorted([*small, "model.safetensors"])
    assert found["o/sharded"] == sorted([*small, *SHARDS, "model.safetensors.index.json"])
    assert found["o/single"] == [*small, "weights.safetensors"]
    assert "several weight files" in found["o/several"]
    assert "'MambaForCausalLM' (model_type 'mamba') is not supported" in found["o/foreign"]
    assert "quantization_config with the method 'bitsandbytes' is not" in found["o/quantised"]
    assert found["o/own-code"] == sorted([*small, "model.safetensors"])
    assert found["o/only-code"].startswith("UnsafeCheckpointError: o/only-code: ")
    assert "'MyModel'" in found["o/only-code"]
    assert "no config.json" in found["o/empty"]
    assert weights == {
        "o/whole/model.safetensors",
        "o/single/weights.safetensors",
        "o/own-code/model.safetensors",
        *(f"o/sharded/{name}" for name in SHARDS),
    }
    assert fetched.count("o/whole/config.json") == 1

    # What was fetched is found again where the hub cannot be reached.
    known = ["o/whole", "o/sharded", "o/single"]
    again = resolved([*known, "o/several"], tmp_path, HF_ENDPOINT=address)
    assert [again[name] for name in known] == [found[name] for name in known]
    offline = resolved([*known, "o/never"], tmp_path, HF_HUB_OFFLINE="1")
    assert [offline[name] for name in known] == [found[name] for name in known]
    assert offline["o/never"].startswith("UnknownModelError")
