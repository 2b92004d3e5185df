"""``python -m ops.families_survey [MODEL_TYPE ...]``: try each architecture of transformers in the engine.

Writes engine/checking/architectures.json: native, fallback or refused. A model type counts as a fallback only
if a tiny random checkpoint of it gives transformers' logits and greedy tokens. Takes about a minute. With
model types as arguments it prints their rows and writes nothing.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Final

import torch
import transformers
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

ROOT: Final = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "engine" / "families"))

from family_checks import CHUNK, compare  # noqa: E402
from family_harness import SIZES, STD, Case, Family, Variant  # noqa: E402

from pagefleet.engine.checking.architectures import FILE, Architecture, Support  # noqa: E402
from pagefleet.engine.errors import ModelLoadError  # noqa: E402
from pagefleet.engine.models.fallback_probe import UNTESTED  # noqa: E402
from pagefleet.engine.models.registry import native_families, read_spec  # noqa: E402

_SIZES: Final[Mapping[str, Any]] = {
    **SIZES,
    "head_dim": 8,
    "sliding_window": 16,
    # Mixtures of experts.
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "n_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 20,
    # Latent attention.
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "qk_head_dim": 12,
    "v_head_dim": 6,
    # Other names of the same sizes.
    "n_embd": 48,
    "d_model": 48,
    "n_layer": 2,
    "n_layers": 2,
    "num_layers": 2,
    "n_head": 6,
    "n_heads": 6,
    "n_positions": 256,
    "n_ctx": 256,
    "dff": 64,
    "ffn_dim": 64,
    "rotary_dim": 4,
}
"""Arguments of each config class that has them."""
_GEMMA4: Final = {
    "pad_token_id": 0,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 260,
    "global_head_dim": 8,
}
_OPTIONS: Final[Mapping[str, Mapping[str, Any]]] = {
    "axk1": {"num_key_value_heads": 6},
    "bamba": {"mamba_n_heads": 6, "mamba_d_head": 16},
    "dots1": {"n_shared_experts": 1, "first_k_dense_replace": 0},
    "dots3_note": {"num_key_value_heads": 6},
    "dots3_note_text": {"num_key_value_heads": 6},
    "emu3": {"pad_token_id": 0},
    "gemma4": _GEMMA4,
    "gemma4_text": _GEMMA4,
    "gemma4_unified": {"pad_token_id": 0},
    "gemma4_unified_text": {"pad_token_id": 0},
    "glm4_moe_lite": {"num_key_value_heads": 6},
    "minicpm3": {"num_key_value_heads": 6},
    "modernbert-decoder": {"pad_token_id": 0},
    "phimoe": {"sliding_window": None},
    "youtu": {"num_key_value_heads": 6},
}
"""Further arguments of single model types."""
_MAX_ELEMENTS: Final = 20_000_000
_PROMPT_LENGTHS: Final = (40, 17)
_REFUSAL: Final = re.compile(
    r"^config\.json: architecture '.*?' is not supported: (.*); use a different model\.$", re.DOTALL
)


def _model_types() -> list[str]:
    names = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    names |= {name for family in native_families().values() for name in family.model_types}
    return sorted(names)


def row(model_type: str) -> Architecture:
    native = _native(model_type)
    if native is not None:
        return native
    name = _architecture(model_type)
    try:
        if model_type in UNTESTED:
            read_spec({"model_type": model_type, "architectures": [name]})
        config = make_config(model_type)
        read_spec({**config.to_dict(), "architectures": [name]})
        difference = differs(config, name)
    except ModelLoadError as error:
        return Architecture(model_type, name, Support.REFUSED, _reason(error))
    if difference:
        raise AssertionError(f"{model_type}: {difference}; the probe must refuse it")
    return Architecture(model_type, name, Support.FALLBACK)


def _native(model_type: str) -> Architecture | None:
    name = _architecture(model_type)
    for file, family in native_families().items():
        if name in family.architectures or (not name and model_type in family.model_types):
            return Architecture(model_type, name or family.architectures[0], Support.NATIVE, file)
    return None


def _architecture(model_type: str) -> str:
    names = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type, "")
    return names if isinstance(names, str) else names[0]


def make_config(model_type: str) -> Any:
    """Return a tiny config with every kind of layer that the default config has; the default one if its class
    does not take these sizes."""
    config_class: Any = CONFIG_MAPPING[model_type]
    try:
        return _make_config(config_class, model_type)
    except StrictDataclassClassValidationError:
        return config_class()


def _make_config(config_class: Any, model_type: str) -> Any:
    options = _OPTIONS.get(model_type, {})
    part = config_class.sub_configs.get("text_config")
    if part is None or not hasattr(part, "__dataclass_fields__"):
        return config_class(**{**_sizes(config_class), **options})
    return config_class(text_config={**_sizes(part), **options})


def _sizes(config_class: Any) -> dict[str, Any]:
    known = {*config_class.__dataclass_fields__, *config_class.attribute_map}
    sizes = {name: value for name, value in _SIZES.items() if name in known}
    kinds = getattr(config_class(), "layer_types", None)
    if "layer_types" not in config_class.__dataclass_fields__:
        kinds = None
    if kinds:
        sizes["layer_types"] = sorted(set(kinds))
        sizes["num_hidden_layers"] = len(sizes["layer_types"])
    return sizes


def differs(config: Any, name: str) -> str | None:
    """Return how the engine's logits or tokens differ from transformers', or None. Raise ModelLoadError if
    the checkpoint that transformers saves is refused, or too large to try."""
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    num_elements = sum(each.numel() for each in model.parameters())
    if num_elements > _MAX_ELEMENTS:
        raise AssertionError(f"its smallest checkpoint has {num_elements:,} elements: add sizes")

    class Tiny(Family):
        prefix = name
        # Gemma multiplies embeddings by the square root of the hidden size.
        embedding_std = 0.06 if name.startswith("Gemma") else STD
        variants: ClassVar = {"plain": Variant(prompt_lengths=_PROMPT_LENGTHS)}

        @classmethod
        def make_config(cls, _transformers: Any, _options: Mapping[str, Any]) -> Any:
            return config

    with tempfile.TemporaryDirectory() as folder:
        case = Case(transformers, Tiny, Tiny.variants["plain"], Path(folder))
        try:
            compare(case.engine(max_num_batched_tokens=CHUNK), case.texts)
        except AssertionError as error:
            return str(error) or repr(error)
    return None


def _reason(error: ModelLoadError) -> str:
    found = _REFUSAL.match(str(error))
    if found is None:
        raise AssertionError(str(error)) from error
    return found[1]


def main(model_types: list[str]) -> None:
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    rows, wrong = [], []
    for model_type in model_types or _model_types():
        try:
            rows.append(row(model_type))
            sys.stdout.write(f"{rows[-1]}\n")
            sys.stdout.flush()
        except Exception as error:  # noqa: BLE001
            # All that is wrong is printed at once.
            wrong.append(model_type)
            reason = str(error)[:600].replace("\n", " ")
            sys.stdout.write(f"WRONG {model_type}: {type(error).__name__}: {reason}\n")
    if wrong:
        sys.exit(f"{len(wrong)} model types are neither right nor refused: {', '.join(wrong)}")
    if not model_types:
        content = {"transformers": transformers.__version__, "architectures": [asdict(each) for each in rows]}
        FILE.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
