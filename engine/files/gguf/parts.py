"""Models in several GGUF files, as llama.cpp's gguf-split makes them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, NamedTuple

from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.files.gguf.header import GGUFHeader, read_gguf_header

__all__ = ["GGUFParts", "read_gguf_parts"]

_PART: Final = re.compile(r"(?P<name>.+)-\d{5}-of-\d{5}")


class GGUFParts(NamedTuple):
    """The files of a model in order, and their joined header. The first file has the metadata."""

    paths: list[Path]
    header: GGUFHeader


def read_gguf_parts(path: Path, *, with_vocabulary: bool = False) -> GGUFParts:
    """Return all files of the model that `path` is, or is one part of.

    `with_vocabulary` as in `read_gguf_header`.

    Raises ModelLoadError if a file is not GGUF, is missing, or belongs to a different model.
    """
    header = read_gguf_header(path, with_vocabulary=with_vocabulary)
    count = int(header.metadata.get("split.count", 1))
    if count <= 1:
        return GGUFParts([path], header)
    found = _PART.fullmatch(path.stem)
    if found is None:
        raise ModelLoadError(
            f"{path} is one of {count} files of a model: rename them to <model>-00001-of-{count:05}.gguf "
            "and so on."
        )
    paths = [path.with_name(f"{found['name']}-{part:05}-of-{count:05}.gguf") for part in range(1, count + 1)]
    if missing := [each.name for each in paths if not each.is_file()]:
        raise ModelLoadError(
            f"{path} is one of {count} files of a model; download {', '.join(missing)} to the same folder."
        )
    return GGUFParts(
        paths, _joined(paths, [read_gguf_header(each, with_vocabulary=with_vocabulary) for each in paths])
    )


def _joined(paths: list[Path], headers: list[GGUFHeader]) -> GGUFHeader:
    for number, (path, header) in enumerate(zip(paths, headers, strict=True)):
        place = (header.metadata.get("split.no"), header.metadata.get("split.count"))
        if place != (number, len(paths)):
            raise ModelLoadError(
                f"{path} is not part {number + 1} of {len(paths)}; download the files again."
            )
    tensors = {name: tensor for header in headers for name, tensor in header.tensors.items()}
    num_tensors = headers[0].metadata.get("split.tensors.count", len(tensors))
    if len(tensors) != num_tensors:
        raise ModelLoadError(
            f"{paths[0]}: the files have {len(tensors)} tensors, not {num_tensors}; download them again."
        )
    return GGUFHeader(headers[0].metadata, tensors)
