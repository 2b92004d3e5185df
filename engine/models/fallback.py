"""TransformersModel: runs a model's code in transformers with the paged attention of a backend.

For architectures without a family of their own. transformers calls a registered function instead of its own
attention, as in continuous batching there and in vLLM's backend for transformers. Everything else, such as
projections, norms and rotation, is the code of transformers; it is slower than a native family.

Only this module and fallback_probe.py import transformers into a worker.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from pagefleet.engine.backends.base import AttentionWeights, Backend
from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.files.schemes.registry import quantization_config
from pagefleet.engine.files.weight_reader import WeightReader, is_finite
from pagefleet.engine.models.fallback_probe import freeze_rotation, probe
from pagefleet.engine.models.model import Model

__all__ = ["TransformersModel", "from_pretrained"]

_ATTENTION: Final = "pagefleet_paged"


class _Step:
    """The step that is being computed, which the attention function of every layer reads."""

    def __init__(self, backend: Backend[Any, Any]) -> None:
        self._backend = backend
        self.plan: Any = None

    def attend(
        self,
        layer: int,
        heads: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """Queries [1, H, T, D], keys [1, K, T, D] and values [1, K, T, V] -> [1, T, H, V]"""
        qkv = torch.cat([each[0].transpose(0, 1).flatten(1) for each in heads], dim=1)
        output = self._backend.attend(self.plan, layer, qkv, AttentionWeights(sinks=sinks))
        return output.view(1, len(qkv), heads[0].shape[1], -1)


class TransformersModel(Model):
    """A model of transformers as a `Model`. Rotation, norms and projections are computed before `attend`.

    Args:
        folder: the checkpoint, with config.json and *.safetensors.
        max_model_len: the context length that the user wants, in tokens. None: the model's.

    Raises ModelLoadError if the architecture cannot run this way, or the weights do not match.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        folder: Path,
        backend: Backend[Any, Any],
        max_model_len: int | None = None,
    ) -> None:
        self.backend = backend
        self.spec = probe(config, max_model_len)
        ALL_ATTENTION_FUNCTIONS.register(_ATTENTION, _attention)
        self._model = _load(folder, quantization_config(config), backend)
        self._step = _Step(backend)
        for module in self._model.modules():
            if hasattr(module, "layer_idx"):
                # Some models do not pass further arguments to their attention function.
                module.pagefleet_step = self._step
        longest = self.spec.max_model_len
        freeze_rotation(self._model, min(max_model_len or longest, longest))

    def forward(self, plan: Any, rows: torch.Tensor) -> torch.Tensor:
        """See `Model.forward`. The states are the logits: models scale them in different ways."""
        token_ids, positions = self.backend.tokens(plan)
        self._step.plan = plan
        output = self._model(
            input_ids=token_ids[None],
            position_ids=positions[None],
            use_cache=False,
            logits_to_keep=rows,
        )
        logits: torch.Tensor = output.logits[0]
        return logits

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    s_aux: torch.Tensor | None = None,
    **_options: Any,
) -> tuple[torch.Tensor, None]:
    """Return the attention of a layer. transformers calls this function instead of its own."""
    step: _Step = module.pagefleet_step
    return step.attend(module.layer_idx, (query, key, value), s_aux), None


def _load(folder: Path, quantization: Mapping[str, Any] | None, backend: Backend[Any, Any]) -> Any:
    try:
        model, report = from_pretrained(
            folder,
            quantization,
            dtype=backend.dtype,
            attn_implementation=_ATTENTION,
            # The other implementations of experts cannot compute in every dtype.
            experts_implementation="eager",
            output_loading_info=True,
        )
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise ModelLoadError(
            f"{folder} cannot be loaded by transformers ({error}); download the model again."
        ) from error
    for name, parameter in model.named_parameters():
        if not is_finite(parameter):
            raise ModelLoadError(
                f"{folder}: the tensor {name!r} contains NaN or infinity; download the model again, or use a "
                "different one."
            )
    if missing := sorted(report["missing_keys"]):
        raise ModelLoadError(
            f"{folder} has no tensor {', '.join(missing[:3])} ({len(missing)} tensors are missing); download "
            "the model again."
        )
    return model.to(backend.device).eval()


def from_pretrained(folder: Path, quantization: Mapping[str, Any] | None, **options: Any) -> Any:
    """Return what transformers' `from_pretrained` does with these options; it never runs a checkpoint's code.

    The engine dequantises, because transformers needs another library for each format.
    """
    local = {"local_files_only": True, "trust_remote_code": False}
    if quantization is None:
        return AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, **local, **options)
    config = AutoConfig.from_pretrained(folder, **local)
    for key in ("quantization_config", "compression_config"):
        vars(config).pop(key, None)
    reader = WeightReader(folder, quantization)
    weights = {name: tensor.to(options["dtype"]) for name, tensor in reader.dense_tensors()}
    model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return model.from_pretrained(None, config=config, state_dict=weights, **options)
