"""Mixtral: a mixture of experts in each layer, with and without a sliding window."""

from family_checks import FamilyChecks, Variant


class TestMixtral(FamilyChecks):
    prefix = "Mixtral"
    options = {"num_local_experts": 5, "num_experts_per_tok": 2}
    variants = {
        "plain": Variant(neighbours={"Mistral": "mlp.gate_proj.weight", "Qwen3Moe": "mlp.gate.weight"}),
        "window": Variant({"sliding_window": 16, "num_experts_per_tok": 3}),
    }
