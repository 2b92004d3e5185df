"""DeepSeek-V2 and V3: latent attention with and without a rank of the queries, experts within groups."""

import shutil

import pytest
import torch
from family_checks import FamilyChecks, Variant
from safetensors.torch import load_file, save_file

from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.models.registry import read_spec

LATENT = {
    "num_key_value_heads": 6,
    "q_lora_rank": 20,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6,
    "v_head_dim": 8,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.5,
    "num_hidden_layers": 3,
}
GROUPS = {"n_group": 4, "topk_group": 2}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "mscale": 0.7,
    "mscale_all_dim": 0.9,
    "original_max_position_embeddings": 64,
}


class TestDeepseekV2(FamilyChecks):
    prefix = "DeepseekV2"
    options = LATENT
    variants = {
        "plain": Variant(neighbours={"DeepseekV3": "e_score_correction_bias", "Llama": "q_proj.weight"}),
        "grouped": Variant({"topk_method": "group_limited_greedy", **GROUPS}),
        "lite": Variant({"q_lora_rank": None, "attention_bias": True}),
        "yarn": Variant({"rope_parameters": YARN}),
    }


class TestDeepseekV3(FamilyChecks):
    prefix = "DeepseekV3"
    options = LATENT | GROUPS | {"num_mtp_layers": 0}
    variants = {
        "plain": Variant(neighbours={"DeepseekV2": "e_score_correction_bias"}),
        "halves": Variant({"rope_interleave": False}),
        "yarn": Variant({"rope_parameters": YARN, "norm_topk_prob": False}),
    }

    def test_layers_that_predict_further_tokens_are_not_used(self, case, tmp_path):
        """The checkpoints of DeepSeek-V3 have them after the last layer."""
        folder = shutil.copytree(case.folder, tmp_path / "mtp")
        weights = load_file(folder / "model.safetensors")
        more = {"model.layers.3.shared_head.norm.weight": torch.ones(48)}
        save_file(weights | more, folder / "model.safetensors", metadata={"format": "pt"})
        assert case.engine(folder=folder).info.vocab_size == 260


def test_values_longer_than_keys_are_refused(transformers):
    """The KV cache has the same number of elements for both."""
    config = transformers.DeepseekV3Config(**LATENT | {"v_head_dim": 17}).to_dict()
    with pytest.raises(ModelLoadError, match=r"v_head_dim \(17\) must be at most .* \(16\)"):
        read_spec(config)
