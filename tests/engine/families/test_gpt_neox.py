"""GPT-NeoX and Pythia: parallel and sequential layers."""

from family_checks import FamilyChecks, Variant


class TestGPTNeoX(FamilyChecks):
    prefix = "GPTNeoX"
    variants = {
        "parallel": Variant(neighbours={"GPT2": "has no tensor", "Llama": "has no tensor"}),
        "sequential": Variant({"use_parallel_residual": False, "attention_bias": False}),
    }
