"""OLMo 3: OLMo 2 with a sliding window in three of four layers; only the others scale their rotation."""

from __future__ import annotations

from pagefleet.engine.model_spec import ModelSpec
from pagefleet.engine.models.config_reader import ConfigReader
from pagefleet.engine.models.families.olmo2 import NAMES, normed_attention, post_norm_model
from pagefleet.engine.models.family import Family
from pagefleet.engine.models.parts import FULL, SLIDING, alternating
from pagefleet.engine.models.rope import read_rope


def read(config: ConfigReader) -> ModelSpec:
    config = config.with_defaults(rms_norm_eps=1e-5, rope_theta=500_000.0, sliding_window=4096)
    sliding, full = (
        normed_attention(config, read_rope(config, layer_type=layer_type)) for layer_type in (SLIDING, FULL)
    )
    return post_norm_model(config, alternating(config, period=4, sliding=sliding, full=full))


FAMILY = Family(model_types=("olmo3",), architectures=("Olmo3ForCausalLM",), read=read, names=NAMES)
