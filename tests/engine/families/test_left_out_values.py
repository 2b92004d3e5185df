"""A value that config.json leaves out is the default of transformers' config class, or a reason to refuse."""

import pytest
from hub_configs import assert_read_as_by_transformers

from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.models.registry import native_families, read_spec

MODEL_TYPES = {
    model_type: architecture
    for family in native_families().values()
    for model_type, architecture in zip(family.model_types, family.architectures, strict=False)
} | {"ministral": "MistralForCausalLM", "gemma3_text": "Gemma3ForCausalLM"}
NESTED = "gemma3"
SIZES = {"num_hidden_layers": 2, "num_experts_per_tok": 2}


@pytest.mark.slow
@pytest.mark.parametrize("model_type", sorted(MODEL_TYPES.keys() - {NESTED}))
def test_a_value_left_out(transformers, model_type):
    architecture = MODEL_TYPES[model_type]
    config_class = transformers.models.auto.configuration_auto.CONFIG_MAPPING[model_type]
    sizes = {} if model_type == "granitemoehybrid" else SIZES
    complete = config_class(**sizes).to_dict()
    for name in ("architectures", "transformers_version", "output_attentions", "return_dict"):
        complete.pop(name, None)
    num_read = 0
    for name in complete.keys() - {"model_type", "num_hidden_layers", "layer_types"}:
        written = {key: value for key, value in complete.items() if key != name}
        try:
            read_spec(written | {"architectures": [architecture]})
        except ModelLoadError:
            continue
        num_read += 1
        assert_read_as_by_transformers(config_class, architecture, written)
    assert num_read > 10 or model_type == "granitemoehybrid"
