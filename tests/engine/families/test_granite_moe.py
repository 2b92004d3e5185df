"""Granite 4 without state-space layers, and Granite's mixtures of experts."""

import pytest
from family_checks import DIFFERS, FamilyChecks, Variant
from test_granite import FACTORS

from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.models.registry import check_supported

EXPERTS = {"num_local_experts": 5, "num_experts_per_tok": 2}
SHARED = {"shared_intermediate_size": 40}
ATTENTION = {"layer_types": ["full_attention"] * 2, "mamba_n_heads": 2}


class TestGraniteMoe(FamilyChecks):
    prefix = "GraniteMoe"
    options = FACTORS | EXPERTS
    variants = {
        "plain": Variant(
            neighbours={"Granite": "mlp.gate_proj", "Mixtral": "block_sparse_moe.gate"},
            marks=[pytest.mark.slow],
        ),
    }


class TestGraniteMoeShared(FamilyChecks):
    prefix = "GraniteMoeShared"
    options = FACTORS | EXPERTS
    variants = {
        "plain": Variant(SHARED, neighbours={"GraniteMoe": "does not use"}),
        "unshared": Variant({"shared_intermediate_size": 0}, marks=[pytest.mark.slow]),
    }


class TestGranite4(FamilyChecks):
    prefix = "GraniteMoeHybrid"
    options = FACTORS | SHARED | ATTENTION
    variants = {
        "dense": Variant(
            {"num_local_experts": 0, "position_embedding_type": "rope"},
            neighbours={"Granite": "mlp.gate_proj"},
        ),
        "no_rope": Variant({"num_local_experts": 0}, neighbours={"GraniteMoeShared": DIFFERS}),
        "experts": Variant(
            EXPERTS | {"position_embedding_type": "rope", "attention_bias": True}, marks=[pytest.mark.slow]
        ),
    }


@pytest.mark.parametrize(
    "layer_types", [["mamba", "attention"], ["linear_attention", "full_attention"], None]
)
def test_state_space_layers_are_refused(layer_types):
    config = {
        "architectures": ["GraniteMoeHybridForCausalLM"],
        "model_type": "granitemoehybrid",
        "num_hidden_layers": 2,
        "layer_types": layer_types,
    }
    with pytest.raises(ModelLoadError, match="state-space layers"):
        check_supported(config)
