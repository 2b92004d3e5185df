"""The rules by which a folder's weight files are chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.files.json_file import read_json_object

WEIGHT_FILE: Final = "model.safetensors"
WEIGHT_INDEX: Final = "model.safetensors.index.json"


def weight_paths(folder: Path) -> list[Path]:
    """Return the weight files of a folder in a fixed order, by the rules of transformers.

    That is model.safetensors, or the files that the index lists, or the only *.safetensors file. Raises
    ModelLoadError if a file is missing, or if there are several files without an index.
    """
    present = sorted(folder.glob("*.safetensors"))
    index = folder / WEIGHT_INDEX
    if (folder / WEIGHT_FILE).is_file():
        return [folder / WEIGHT_FILE]
    paths = indexed_paths(index) if index.is_file() else present
    if not index.is_file() and len(paths) != 1:
        found = f"several weight files ({', '.join(path.name for path in paths)})" if paths else "no weights"
        raise ModelLoadError(
            f"{folder} has {found}; it needs {WEIGHT_FILE}, {WEIGHT_INDEX}, or a single *.safetensors file. "
            "Download the model again."
        )
    if missing := [path.name for path in paths if not path.is_file()]:
        raise ModelLoadError(
            f"{folder} has no {', '.join(missing)}, which {WEIGHT_INDEX} lists; download the model again."
        )
    return paths


def indexed_paths(index: Path) -> list[Path]:
    """Return the files that `index`, a model.safetensors.index.json, lists. Raises ModelLoadError."""
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ModelLoadError(
            f"{index} has no weight_map from tensors to file names; download the file again."
        )
    names = sorted(set(weight_map.values()))
    # A path could lead out of the folder.
    if elsewhere := [name for name in names if name != Path(name).name]:
        raise ModelLoadError(
            f"{index} lists {elsewhere[0]!r}, which is not a file name; download the file again."
        )
    return [index.parent / name for name in names]
