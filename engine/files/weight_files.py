"""Which files of a folder hold its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.files.json_file import read_json_object

WEIGHT_FILE: Final = "model.safetensors"
WEIGHT_INDEX: Final = "model.safetensors.index.json"


def weight_paths(folder: Path) -> list[Path]:
    """Return the weight files in a fixed order, by transformers' rules.

    model.safetensors, else the files that the index names, else the only *.safetensors file.
    Raises ModelLoadError for a missing file, and for several without an index.
    """
    present = sorted(folder.glob("*.safetensors"))
    index = folder / WEIGHT_INDEX
    if (folder / WEIGHT_FILE).is_file():
        return [folder / WEIGHT_FILE]
    paths = indexed_paths(index) if index.is_file() else present
    if not index.is_file() and len(paths) != 1:
        found = f"several ({', '.join(path.name for path in paths)})" if paths else "none"
        raise ModelLoadError(
            f"{folder} needs {WEIGHT_FILE}, {WEIGHT_INDEX}, or a single *.safetensors file; it has {found}."
        )
    if missing := [path.name for path in paths if not path.is_file()]:
        raise ModelLoadError(f"{folder} has no {', '.join(missing)}; fetch the model again.")
    return paths


def indexed_paths(index: Path) -> list[Path]:
    """Return the files that a model.safetensors.index.json names. Raises ModelLoadError."""
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ModelLoadError(f"{index} has no weight_map of file names; fetch the file again.")
    return [index.parent / name for name in sorted(set(weight_map.values()))]
