"""Damaged checkpoints: each is refused with one sentence that names the file or the tensor.

The checkpoint is a whole Llama of two shards; each test damages one thing.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from tokenizers import decoders, models, pre_tokenizers

from pagefleet.engine.backends.activations import ACTIVATIONS
from pagefleet.engine.config import EngineConfig
from pagefleet.engine.errors import InvalidRequestError, ModelLoadError, UnsafeCheckpointError
from pagefleet.engine.llm import LLM
from pagefleet.engine.loading import loader
from pagefleet.engine.sampling.sampling_params import SamplingParams
from pagefleet.engine.structured.structured_output import StructuredOutput

VOCAB, HIDDEN, INNER, HEAD_DIM, HEADS, KV_HEADS, LAYERS = 264, 32, 48, 8, 4, 2, 2
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "eos_token_id": 0,
}
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def shapes() -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
    for index in range(LAYERS):
        layer = f"model.layers.{index}"
        found |= {
            f"{layer}.input_layernorm.weight": (HIDDEN,),
            f"{layer}.self_attn.q_proj.weight": (HEADS * HEAD_DIM, HIDDEN),
            f"{layer}.self_attn.k_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
            f"{layer}.self_attn.v_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
            f"{layer}.self_attn.o_proj.weight": (HIDDEN, HEADS * HEAD_DIM),
            f"{layer}.post_attention_layernorm.weight": (HIDDEN,),
            f"{layer}.mlp.gate_proj.weight": (INNER, HIDDEN),
            f"{layer}.mlp.up_proj.weight": (INNER, HIDDEN),
            f"{layer}.mlp.down_proj.weight": (HIDDEN, INNER),
        }
    return found | {"model.norm.weight": (HIDDEN,)}


def write_tokenizer(folder: Path, num_words: int = 256, added: tuple[str, ...] = ()) -> None:
    """Write a tokenizer of bytes, with further words if `num_words` is more than 256, and added tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(f"word{index}" for index in range(256, num_words))]
    library = tokenizers.Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(list(added))
    library.save(str(folder / "tokenizer.json"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The whole checkpoint."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes().items()}
    files = {name: FIRST if "layers.1" not in name else SECOND for name in tensors}
    for file in (FIRST, SECOND):
        save_file({name: tensors[name] for name in tensors if files[name] == file}, folder / file)
    write_json(folder / INDEX, {"weight_map": files})
    write_json(folder / "config.json", CONFIG)
    write_tokenizer(folder)
    return folder


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def change_json(path: Path, **changes: Any) -> None:
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | changes)


def change_tensor(folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    file = folder / json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"][name]
    tensors = load_file(file)
    save_file(tensors | {name: change(tensors[name])}, file)


def load(folder: Path, **options: Any) -> Any:
    return loader.load(
        EngineConfig(model=str(folder), num_blocks=16, max_num_batched_tokens=16, num_threads=1, **options)
    )


# -- damage, and the sentence that reports it ----------------------------------------------------------


def truncate(folder: Path) -> None:
    os.truncate(folder / SECOND, (folder / SECOND).stat().st_size // 2)


def cut_the_header(folder: Path) -> None:
    os.truncate(folder / SECOND, 40)


def empty_a_shard(folder: Path) -> None:
    os.truncate(folder / SECOND, 0)


def remove_a_shard(folder: Path) -> None:
    (folder / SECOND).unlink()


def name_a_missing_file(folder: Path) -> None:
    weight_map = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
    write_json(folder / INDEX, {"weight_map": weight_map | {"x": "other.safetensors"}})


def name_a_file_elsewhere(folder: Path) -> None:
    (folder / FIRST).rename(folder.parent / FIRST)
    weight_map = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
    moved = {name: f"../{file}" if file == FIRST else file for name, file in weight_map.items()}
    write_json(folder / INDEX, {"weight_map": moved})


def lose_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / SECOND)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / SECOND)


def transpose(name: str) -> Callable[[Path], None]:
    return lambda folder: change_tensor(folder, name, lambda tensor: tensor.T.contiguous())


def shorten(name: str) -> Callable[[Path], None]:
    return lambda folder: change_tensor(folder, name, lambda tensor: tensor[:-1].clone())


def spoil(name: str, value: float) -> Callable[[Path], None]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[3] = value
        return tensor

    return lambda folder: change_tensor(folder, name, change)


def enlarge_the_vocabulary(folder: Path) -> None:
    write_tokenizer(folder, num_words=VOCAB + 1)


def claim_more_rows(folder: Path) -> None:
    change_json(folder / "config.json", vocab_size=VOCAB + 7)


def inflate_the_config(folder: Path) -> None:
    # A sparse file needs no disk space. A worker that parsed it would need seconds and a gigabyte.
    os.truncate(folder / "config.json", 200 * 2**20)


UNREADABLE = "{folder}/" + SECOND + " is not a readable safetensors file (*); download the model again."
NOT_FINITE = "contains NaN or infinity; download the model again, or use a different one."
LISTED = f"which {INDEX} lists; download the model again."
YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32}
BELONG = "the files belong to different models. Download the model again."
DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (truncate, UNREADABLE),
    "header": (cut_the_header, UNREADABLE),
    "empty": (empty_a_shard, UNREADABLE),
    "missing shard": (remove_a_shard, "{folder} has no " + f"{SECOND}, {LISTED}"),
    "index": (name_a_missing_file, "{folder} has no other.safetensors, " + LISTED),
    "file elsewhere": (
        name_a_file_elsewhere,
        "{folder}/" + f"{INDEX} lists '../{FIRST}', which is not a file name; download the file again.",
    ),
    "missing tensor": (
        lose_a_tensor,
        "{folder} has no tensor model.layers.1.mlp.up_proj.weight (1 tensors are missing); download the "
        "model again.",
    ),
    "NaN": (
        spoil("model.layers.1.mlp.up_proj.weight", float("nan")),
        "{folder}: the tensor 'model.layers.1.mlp.up_proj.weight' " + NOT_FINITE,
    ),
    "infinity": (
        spoil("model.norm.weight", float("-inf")),
        "{folder}: the tensor 'model.norm.weight' " + NOT_FINITE,
    ),
    "rows": (
        claim_more_rows,
        "{folder}: the tensor 'model.embed_tokens.weight' has the shape (264, 32), but config.json describes "
        "(271, 32): " + BELONG,
    ),
    "shape": (
        transpose("model.layers.1.self_attn.k_proj.weight"),
        "{folder}: the tensor 'model.layers.1.self_attn.k_proj.weight' has the shape (32, 16), but "
        "config.json describes (16, 32): " + BELONG,
    ),
    "row shape": (
        transpose("model.layers.0.mlp.down_proj.weight"),
        "{folder}: the tensor 'model.layers.0.mlp.down_proj.weight' has the shape (48, 32), but config.json "
        "describes (32, 48): " + BELONG,
    ),
    "norm": (
        shorten("model.layers.0.post_attention_layernorm.weight"),
        "{folder}: the tensor 'model.layers.0.post_attention_layernorm.weight' has the shape (31,), but "
        "config.json describes (32,): " + BELONG,
    ),
    "vocabulary": (
        enlarge_the_vocabulary,
        "The tokenizer has the token 'word264' with id 264, but the model has embeddings of ids below 264 "
        "only: " + BELONG,
    ),
    "layers": (
        lambda folder: change_json(folder / "config.json", num_hidden_layers=10**9),
        "config.json: num_hidden_layers must be at most 10000, not 1000000000; download the file again.",
    ),
    "head": (
        lambda folder: change_json(folder / "config.json", head_dim=2**31 - 2),
        "config.json: an attention head must have at most 65536 elements, not 2147483646; download the file "
        "again.",
    ),
    "zero": (
        lambda folder: change_json(folder / "config.json", partial_rotary_factor=0),
        "config.json: partial_rotary_factor must be more than 0 and at most 1, not 0.0; download the file "
        "again.",
    ),
    "rope": (
        lambda folder: change_json(folder / "config.json", rope_scaling={"rope_type": "linear", "factor": 0}),
        "config.json: the values of RoPE scaling 'linear' give frequencies that are not finite; download the "
        "file again.",
    ),
    "yarn": (
        lambda folder: change_json(folder / "config.json", rope_scaling=YARN | {"beta_fast": 0}),
        "config.json has a value that cannot be used (*); download the file again.",
    ),
    "activation": (
        lambda folder: change_json(folder / "config.json", hidden_act=["silu"]),
        f"config.json: hidden_act ['silu'] is not supported, only {', '.join(sorted(ACTIVATIONS))}; use a "
        "different model.",
    ),
    "200 MB config": (
        inflate_the_config,
        "{folder}/config.json has 200 MiB, and a config.json of more than 16 MiB is not read; download the "
        "model again.",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint_is_one_sentence(folder, name):
    damage, sentence = DAMAGE[name]
    load(folder)
    damage(folder)
    expected = re.escape(sentence.format(folder=folder)).replace(re.escape("(*)"), r"\(.+\)")
    with pytest.raises(ModelLoadError) as raised:
        load(folder)
    assert re.fullmatch(expected, str(raised.value)), str(raised.value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_nan_is_found_in_every_dtype_and_large_weights_are_not_nan(folder, dtype):
    """The sum of large float16 values is infinite; the values are not."""
    for file in (FIRST, SECOND):
        save_file({name: each.to(dtype) for name, each in load_file(folder / file).items()}, folder / file)
    change_json(folder / "config.json", torch_dtype=str(dtype).removeprefix("torch."))
    name = "model.layers.1.mlp.up_proj.weight"
    change_tensor(folder, name, lambda tensor: torch.full_like(tensor, torch.finfo(dtype).max / 2))
    load(folder)
    spoil(name, float("nan"))(folder)
    with pytest.raises(ModelLoadError, match="contains NaN"):
        load(folder)


def test_nan_is_found_in_a_model_that_transformers_runs(transformers, folder):
    options = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "num_attention_heads": HEADS}
    config = transformers.PhiConfig(**options, intermediate_size=INNER, num_hidden_layers=1)
    transformers.PhiForCausalLM(config).save_pretrained(folder.parent / "phi")
    write_tokenizer(folder.parent / "phi")
    load(folder.parent / "phi")
    name, file = "model.layers.0.mlp.fc1.weight", folder.parent / "phi" / "model.safetensors"
    tensors = load_file(file)
    tensors[name][1, 2] = float("nan")
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ModelLoadError, match=f"'{name}' {NOT_FINITE}"):
        load(folder.parent / "phi")


# -- vocabularies --------------------------------------------------------------------------------------


def test_added_tokens_beyond_the_embedding_load_and_are_refused_in_a_prompt(folder):
    """Gemma 3's text models have a tokenizer with an image token, but no embedding of it."""
    write_tokenizer(folder, num_words=VOCAB, added=("<image>",))
    llm = LLM(model=str(folder), num_blocks=16, max_num_batched_tokens=16, num_threads=1)
    answer = llm.generate("a", SamplingParams(max_tokens=4), StructuredOutput(regex="[a-f]{4}"))
    assert re.fullmatch("[a-f]{4}", answer[0].text)
    with pytest.raises(InvalidRequestError, match="token id 264; the ids of tiny are 0 to 263"):
        llm.generate("<image>", SamplingParams(max_tokens=4))


# -- custom code ---------------------------------------------------------------------------------------


def test_code_of_a_supported_architecture_is_ignored(folder):
    """Phi-3 and others bring code for older versions of transformers."""
    change_json(folder / "config.json", auto_map={"AutoModelForCausalLM": "modeling_tiny.TinyForCausalLM"})
    (folder / "modeling_tiny.py").write_text("raise SystemExit('this code must not run')", encoding="utf-8")
    assert load(folder).info.vocab_size > 0


def test_an_architecture_that_only_its_own_code_knows_is_named(folder):
    auto_map = {"AutoModelForCausalLM": "modeling_tiny.TinyForCausalLM"}
    change_json(
        folder / "config.json", auto_map=auto_map, architectures=["TinyForCausalLM"], model_type="tiny"
    )
    with pytest.raises(UnsafeCheckpointError) as raised:
        load(folder)
    assert "'TinyForCausalLM'" in str(raised.value)
    assert str(raised.value).endswith("; its own code (auto_map in config.json) is never run.")


def test_the_code_of_a_tokenizer_is_not_run(folder):
    """transformers would ask, and the process that converts tokenizers has the user's terminal."""
    (folder / "tokenizer.json").unlink()
    write_json(folder / "tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["mine.Mine", None]}})
    (folder / "mine.py").write_text(
        f"open({str(folder / 'ran')!r}, 'w').close()\nclass Mine: pass\n", encoding="utf-8"
    )
    change_json(folder / "config.json", model_type="tiny")
    command = [sys.executable, "-m", "pagefleet.engine.loading.convert", str(folder.parent), str(folder)]
    done = subprocess.run(command, input="y\n", capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert not (folder / "ran").exists()
    assert "[y/N]" not in done.stdout


# -- a worker ------------------------------------------------------------------------------------------


def test_a_worker_prints_the_sentence_and_never_registers(folder, store):
    """NaN is found last, when all other tensors of the layer are packed."""
    damage, sentence = DAMAGE["NaN"]
    damage(folder)
    command = [sys.executable, "-m", "pagefleet.api.cli.main", "worker", "--model", str(folder)]
    done = subprocess.run(
        command,
        env={**os.environ, "PAGEFLEET_REDIS_URL": store.settings.url},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1] == "Error: " + sentence.format(folder=folder)
    assert "Traceback" not in done.stderr
    assert store.redis.dbsize() == 0, "it has written a card or a lease"
