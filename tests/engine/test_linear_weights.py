"""Linear layers as a checkpoint stores them."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.files.weight_reader import WeightReader


def test_a_dense_layer_is_read_with_its_bias(tmp_path):
    weight, bias = torch.randn(3, 5), torch.randn(3)
    save_file(
        {"up.weight": weight, "up.bias": bias, "down.weight": weight.clone()}, tmp_path / "model.safetensors"
    )
    reader = WeightReader(tmp_path)
    assert reader.has_linear("up")
    assert not reader.has_linear("gate")
    up, down = reader.take_linear("up"), reader.take_linear("down")
    assert up.shape == (3, 5)
    assert torch.equal(up.dense(), weight)
    assert up.bias is not None
    assert torch.equal(up.bias, bias)
    assert down.bias is None
    reader.assert_all_taken()
    with pytest.raises(ModelLoadError, match=r"no tensor 'gate\.weight'"):
        reader.take_linear("gate")
