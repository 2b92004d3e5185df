"""`pagefleet models check`: equal checkpoints pass, and what differs is found."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from family_harness import make_checkpoint, make_config
from safetensors.torch import load_file, save_file

from pagefleet.engine.backends import reference_attention
from pagefleet.engine.checking.comparison import compare
from pagefleet.workers.cli.model_check import check

PROMPTS = ["To be, or not to be", "a"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, transformers):
    return make(tmp_path_factory.mktemp("tiny") / "native", transformers, "Llama")


def make(folder, transformers, family):
    config = make_config(getattr(transformers, f"{family}Config"), {"max_position_embeddings": 512})
    make_checkpoint(transformers, config, folder)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return folder


def quiet(_stage):
    pass


def test_a_native_model_passes(checkpoint):
    comparison = compare(str(checkpoint), PROMPTS, quiet)
    assert comparison.kind == "native"
    assert comparison.passed
    assert [result.num_equal for result in comparison.results] == [32, 32]
    assert all(result.same_prompt_tokens for result in comparison.results)


def test_a_model_that_runs_with_transformers_code_passes(tmp_path, transformers):
    folder = make(tmp_path / "phi", transformers, "Phi")
    comparison = compare(str(folder), PROMPTS, quiet)
    assert (comparison.kind, comparison.passed) == ("fallback", True)


def test_a_quantised_model_is_compared_with_its_dequantised_weights(checkpoint, tmp_path):
    """The linear layers are stored in float8, with a scale for each output."""
    weights = load_file(checkpoint / "model.safetensors")
    for name in [name for name in weights if "_proj" in name]:
        scale = weights[name].abs().amax(-1, keepdim=True) / 448
        weights[name] = (weights[name] / scale).to(torch.float8_e4m3fn)
        weights[f"{name}_scale"] = scale
    for path in checkpoint.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    args = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": args}},
        "ignore": ["lm_head"],
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert compare(str(tmp_path), PROMPTS, quiet).passed


def test_an_engine_that_computes_something_else_is_found(checkpoint, monkeypatch):
    """Rotated by other angles, the second token may differ, and the exit status says so."""
    rotate = reference_attention.rotate

    def too_far(heads, angles, rope):
        return rotate(heads, angles._replace(sin=angles.sin * 1.05), rope)

    monkeypatch.setattr("pagefleet.engine.backends.reference.rotate", too_far)
    result = CliRunner().invoke(check, [str(checkpoint), "--json"])
    assert result.exit_code == 1, result.output
    content = json.loads(result.stdout)
    assert not content["passed"]
    assert any(not each["passed"] and each["num_equal"] < 32 for each in content["results"])


def test_a_near_tie_is_no_difference(checkpoint):
    (result, _) = compare(str(checkpoint), PROMPTS, quiet).results
    assert replace(result, num_equal=3, margin=1e-6).passed
    assert not replace(result, num_equal=3, margin=0.5).passed
    assert not replace(result, largest_difference=0.5).passed
    assert not replace(result, same_prompt_tokens=False).passed


def test_a_folder_that_is_no_checkpoint_is_one_sentence(tmp_path):
    result = CliRunner().invoke(check, [str(tmp_path)])
    assert result.exit_code == 1
    assert "has no config.json" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.slow
def test_the_code_of_a_checkpoint_is_not_run(checkpoint, tmp_path):
    """transformers would ask on the terminal, and run it after "y"."""
    folder, mark = shutil.copytree(checkpoint, tmp_path / "own-code"), tmp_path / "was-run"
    (folder / "own.py").write_text(f"open({str(mark)!r}, 'w')\n")
    for file, classes in {
        "config.json": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"},
        "tokenizer_config.json": {"AutoTokenizer": ["own.Slow", "own.Fast"]},
    }.items():
        content = json.loads((folder / file).read_text()) | {"auto_map": classes}
        content |= {"tokenizer_class": "Own"} if "tokenizer" in file else {}
        (folder / file).write_text(json.dumps(content))
    command = [sys.executable, "-m", "pagefleet.api.cli.main", "models", "check", str(folder), "--json"]
    done = subprocess.run(command, input="y\n" * 9, capture_output=True, text=True, timeout=120)
    assert not mark.exists()
    assert json.loads(done.stdout)["passed"], done.stderr
