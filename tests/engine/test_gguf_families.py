"""Each family's GGUF file becomes the checkpoint that it was made of: the same tensors, the same logits."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_to_gguf import hf_to_gguf
from safetensors.torch import load_file

from pagefleet.engine.backends.reference import ReferenceBackend
from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.files.json_file import read_json_object
from pagefleet.engine.llm import LLM
from pagefleet.engine.loading.gguf import config, families
from pagefleet.engine.loading.gguf.conversion import convert_gguf
from pagefleet.engine.loading.gguf.families import FAMILIES
from pagefleet.engine.models.registry import find_family, load_model
from pagefleet.engine.sampling.sampling_params import SamplingParams

_TINY: dict[str, Any] = {
    "vocab_size": 67,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_TIED = {"tie_word_embeddings": True}
_BY_HEADS = {"head_dim": 8}
"""The families whose heads are always hidden size / heads."""
_WINDOW = {"sliding_window": 5}
_IN_FILE = {"attention__sliding_window": 5}


def rope(kind: str, theta: float = 10_000.0, **parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **parameters}}


LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"factor": 4.0, "original_max_position_embeddings": 16}


@dataclass(frozen=True)
class Case:
    family: str
    """The prefix of the classes in transformers."""
    options: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    architecture: str = ""
    """GGUF's name, if it is not the family's in lower case."""


LATENT = {
    "q_lora_rank": 12,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6,
    "v_head_dim": 8,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.5,
    "n_group": 4,
    "topk_group": 2,
    "num_key_value_heads": 4,
    "head_dim": 6,
}
LATENT_IN_FILE = {
    "expert_shared_count": 2,
    "expert_feed_forward_length": 24,
    "leading_dense_block_count": 1,
    "expert_weights_scale": 1.5,
    "expert_group_count": 4,
    "expert_group_used_count": 2,
}
CASES = {
    "llama": Case("Llama"),
    "llama-tied-biased": Case("Llama", _TIED | {"attention_bias": True, "mlp_bias": True}),
    "llama-linear": Case("Llama", rope("linear", factor=4.0)),
    "llama-llama3": Case("Llama", rope("llama3", **LLAMA3)),
    "llama-other-factors": Case("Llama", rope("llama3", **LLAMA3 | {"original_max_position_embeddings": 32})),
    "llama-yarn": Case("Llama", rope("yarn", **YARN)),
    "ministral3": Case(
        "Ministral3",
        rope("yarn", **YARN, mscale=1.0, mscale_all_dim=0.5, llama_4_scaling_beta=0.5),
        {"rope__scaling__yarn_log_multiplier": 0.5, "attention__temperature_scale": 0.5},
        "mistral3",
    ),
    "mixtral": Case("Mixtral", {"num_local_experts": 3}, architecture="llama"),
    "qwen2": Case("Qwen2", _TIED | _BY_HEADS),
    "qwen3": Case("Qwen3"),
    "qwen3-yarn": Case("Qwen3", rope("yarn", theta=1e6, **YARN)),
    "qwen2moe": Case(
        "Qwen2Moe",
        _BY_HEADS
        | {
            "num_experts": 3,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 24,
        },
        {"expert_feed_forward_length": 16, "expert_shared_feed_forward_length": 24},
    ),
    "qwen3moe": Case(
        "Qwen3Moe",
        {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "norm_topk_prob": True},
        {"expert_feed_forward_length": 16},
    ),
    "phi3": Case("Phi3", _BY_HEADS | _WINDOW, _IN_FILE),
    "phi3-longrope": Case(
        "Phi3",
        _TIED
        | {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
        | rope(
            "longrope",
            partial_rotary_factor=0.75,
            short_factor=[1.0, 1.25, 1.5, 2.0, 2.0, 3.0],
            long_factor=[1.0, 2.5, 4.5, 6.0, 7.0, 8.0],
            original_max_position_embeddings=32,
        )
        | {"original_max_position_embeddings": 32},
        {
            "rope__scaling__original_context_length": 32,
            "rope__scaling__attn_factor": 1.0954451,
            "attention__sliding_window": 0,
        },
    ),
    "gemma": Case("Gemma", _TIED),
    "gemma2": Case(
        "Gemma2",
        _TIED | _WINDOW | {"query_pre_attn_scalar": 16, "attn_logit_softcapping": 2.0},
        _IN_FILE | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 30.0},
    ),
    "gemma3": Case(
        "Gemma3",
        _TIED
        | _WINDOW
        | {"num_hidden_layers": 7, "query_pre_attn_scalar": 16}
        | {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            }
        },
        _IN_FILE,
    ),
    "granite": Case(
        "Granite",
        _TIED
        | _BY_HEADS
        | {
            "attention_multiplier": 0.125,
            "embedding_multiplier": 6.0,
            "residual_multiplier": 0.22,
            "logits_scaling": 4.0,
        },
        {"attention__scale": 0.125, "embedding_scale": 6.0, "residual_scale": 0.22, "logit_scale": 4.0},
    ),
    "olmo2": Case("Olmo2", _BY_HEADS),
    "olmo3": Case(
        "Olmo3",
        _BY_HEADS | _WINDOW | {"layer_types": ["sliding_attention", "full_attention"] * 2},
        _IN_FILE | {"attention__sliding_window_pattern": [True, False] * 2},
        "olmo2",
    ),
    "smollm3": Case("SmolLM3", _TIED | _BY_HEADS | {"no_rope_layer_interval": 4}),
    "glm4": Case("Glm4", {"attention_bias": True}),
    "cohere": Case("Cohere", _TIED | _BY_HEADS | {"logit_scale": 0.5}, {"logit_scale": 0.5}, "command-r"),
    "cohere-head-norms": Case(
        "Cohere", _TIED | _BY_HEADS | {"use_qk_norm": True}, {"logit_scale": 0.0625}, "command-r"
    ),
    "cohere2": Case("Cohere2", _TIED | _BY_HEADS | _WINDOW, _IN_FILE | {"logit_scale": 0.0625}),
    "starcoder2": Case("Starcoder2", _TIED | _BY_HEADS | {"sliding_window": 4096}),
    "deepseek2": Case(
        "DeepseekV2", LATENT | {"topk_method": "group_limited_greedy"}, LATENT_IN_FILE, "deepseek2"
    ),
    "deepseek2-lite": Case(
        "DeepseekV2",
        LATENT
        | {"q_lora_rank": None, "n_group": 1, "topk_group": 1, "topk_method": "greedy"}
        | rope("yarn", **YARN, mscale=0.707, mscale_all_dim=0.707),
        LATENT_IN_FILE
        | {"expert_group_count": 1, "expert_group_used_count": 1}
        | {"rope__scaling__yarn_log_multiplier": 0.0707},
        "deepseek2",
    ),
    "deepseek3": Case(
        "DeepseekV3",
        LATENT | {"norm_topk_prob": True},
        LATENT_IN_FILE | {"expert_gating_func": 2, "expert_weights_norm": True},
        "deepseek2",
    ),
    "gpt-oss": Case(
        "GptOss",
        _WINDOW
        | {"num_local_experts": 3, "num_experts_per_tok": 2}
        | rope("yarn", theta=150_000.0, truncate=False, **YARN),
        _IN_FILE | {"expert_feed_forward_length": 48},
    ),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def architecture_of(case: Case) -> str:
    return case.architecture or {"GptOss": "gpt-oss"}.get(case.family, case.family.lower())


def random_model(transformers: Any, case: Case) -> Any:
    torch.manual_seed(0)
    name = "Gemma3Text" if case.family == "Gemma3" else case.family
    options = getattr(transformers, f"{name}Config")(**(_TINY | case.options))
    model = getattr(transformers, f"{case.family}ForCausalLM")(options).eval()
    for parameter in model.parameters():
        # Norms are made as ones and biases as zeros: one that is left out would not be noticed.
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def test_a_family_becomes_the_checkpoint_that_its_file_was_made_of(case, transformers, tmp_path):
    check(case, transformers, tmp_path)


NEIGHBOURS = {
    "llama": "qwen2",
    "ministral3": "llama",
    "qwen2": "llama",
    "qwen3": "qwen2",
    "qwen2moe": "qwen3moe",
    "qwen3moe": "qwen2moe",
    "phi3": "glm4",
    "gemma": "llama",
    "gemma2": "gemma3",
    "gemma3": "gemma2",
    "granite": "llama",
    "olmo2": "gemma2",
    "glm4": "phi3",
    "cohere": "cohere2",
    "cohere2": "command-r",
    "starcoder2": "llama",
    "gpt-oss": "qwen3moe",
    "deepseek2": "qwen3moe",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NEIGHBOURS)
def test_a_neighbours_entry_does_not_pass(name, transformers, tmp_path, monkeypatch):
    """Only the class in transformers is the file's own, the only difference of SmolLM3's entry to Llama's."""
    architecture = architecture_of(CASES[name])
    own, neighbour = FAMILIES[architecture], FAMILIES[NEIGHBOURS[name]]
    named = replace(neighbour, model_type=own.model_type, architecture=own.architecture)
    monkeypatch.setattr(families, "FAMILIES", {architecture: named})
    monkeypatch.setattr(
        config, "_ADJUSTMENTS", {own.model_type: config._ADJUSTMENTS.get(neighbour.model_type)}
    )
    with pytest.raises((AssertionError, AttributeError, ModelLoadError, TypeError)):
        check(CASES[name], transformers, tmp_path)


def check(case: Case, transformers: Any, tmp_path: Path) -> None:
    model = random_model(transformers, case)
    source, target = tmp_path / "source", tmp_path / "target"
    model.save_pretrained(source)
    target.mkdir()
    hf_to_gguf(source, tmp_path / "model.gguf", architecture_of(case), **case.metadata)
    convert_gguf(tmp_path / "model.gguf", target)
    original, found = load_file(source / "model.safetensors"), load_file(target / "model.safetensors")
    assert found.keys() == original.keys()
    shifted = case.family.startswith("Gemma")
    for name, tensor in original.items():
        # 1 was added to norms in float32, which rounds.
        atol = 1.2e-7 if shifted and "norm" in name else 0
        torch.testing.assert_close(
            found[name], tensor, rtol=0, atol=atol, msg=lambda text, name=name: name + text
        )
    again = transformers.AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
    assert type(again) is type(model)
    token_ids = torch.randint(0, 67, (1, 30), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, logits = model(token_ids).logits, again(token_ids).logits
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert_loads(target)


def assert_loads(folder: Path) -> None:
    """The engine finds all tensors, and no others. Only Qwen2-MoE runs with transformers' code."""
    content = read_json_object(folder / "config.json")
    assert (find_family(content) is None) == (content["model_type"] == "qwen2_moe")
    load_model(content, folder, ReferenceBackend(torch.device("cpu"), torch.float32))


IN_MAKE_TEST = ("llama-llama3", "gpt-oss")


@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=[] if each in IN_MAKE_TEST else [pytest.mark.slow]) for each in CASES]
)
def test_the_engine_generates_what_transformers_generates(name, transformers, tmp_path):
    case = CASES[name]
    model = random_model(transformers, case)
    model.save_pretrained(tmp_path / "source")
    hf_to_gguf(tmp_path / "source", tmp_path / "m.gguf", architecture_of(case), **case.metadata)
    options = {"dtype": "float32", "cache_dir": tmp_path / "cache", "num_blocks": 16, "block_size": 4}
    llm = LLM(model=str(tmp_path / "m.gguf"), **options)
    prompt = list(range(7, 27))
    [found] = llm.generate([prompt], SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True))
    expected = model.generate(
        torch.tensor([prompt]), do_sample=False, max_new_tokens=16, min_new_tokens=16, eos_token_id=None
    )
    assert list(found.token_ids) == expected[0, 20:].tolist()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama-llama3", {"rope_type": "llama3", "rope_theta": 10_000.0, **LLAMA3}),
        ("llama-other-factors", "longrope"),
    ],
)
def test_the_factors_of_llama_3_are_written_as_its_parameters(name, expected, transformers, tmp_path):
    case, target = CASES[name], tmp_path / "target"
    random_model(transformers, case).save_pretrained(tmp_path / "source")
    target.mkdir()
    hf_to_gguf(tmp_path / "source", tmp_path / "model.gguf", "llama")
    convert_gguf(tmp_path / "model.gguf", target)
    found = read_json_object(target / "config.json")["rope_parameters"]
    assert expected in (found, found["rope_type"])


def test_the_page_lists_all_architectures():
    page = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    [table] = re.findall(r"\| architecture \|.*?\n\n", page, re.DOTALL)
    names = re.findall(r"`(.*?)`", table)
    assert sorted(names) == sorted(FAMILIES)
