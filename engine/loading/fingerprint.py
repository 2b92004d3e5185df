"""Fingerprints of a checkpoint: what tells two of them apart."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pagefleet.engine.files.weight_files import weight_paths
from pagefleet.engine.text.template_files import (
    SPECIAL_TOKENS_MAP,
    TEMPLATE,
    TEMPLATE_FOLDER,
    TOKENIZER_CONFIG,
)

NUM_SAMPLES = 256


SAMPLE_BYTES = 4096


TOKENIZER_FILES = ("tokenizer.json", TOKENIZER_CONFIG, TEMPLATE)


def fingerprint_weights(folder: Path) -> str:
    """32 hex digits that tell checkpoints apart at a cost that does not grow with their size.

    SHA-256 over each file's size, header (names, dtypes, shapes, offsets) and 256 evenly spaced samples of
    4 KiB (all of it, if it is no larger than that). Two fine-tunes of one model differ nearly everywhere, so
    the samples tell them apart; an edit of a few weights between two samples goes unnoticed. The files'
    names don't count.
    """
    digest = hashlib.sha256()
    for path in weight_paths(folder):
        size = path.stat().st_size
        with path.open("rb") as file:
            header_size = 8 + int.from_bytes(file.read(8), "little")
            file.seek(0)
            digest.update(size.to_bytes(8, "little") + file.read(header_size))
            stride = max(SAMPLE_BYTES, (size - header_size) // NUM_SAMPLES)
            for offset in range(header_size, size, stride):
                file.seek(offset)
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()[:32]


def fingerprint_tokenizer(folder: Path) -> str:
    """32 hex digits over the bytes of the tokenizer's files, the chat template among them."""
    digest = hashlib.sha256()
    for name in TOKENIZER_FILES:
        path = folder / name
        content = path.read_bytes() if path.is_file() else b""
        digest.update(len(content).to_bytes(8, "little") + content)
    # Only where there are such files: the others keep their fingerprint, and with it their running jobs.
    for path in [folder / SPECIAL_TOKENS_MAP, *sorted((folder / TEMPLATE_FOLDER).glob("*.jinja"))]:
        if path.is_file():
            content = path.read_bytes()
            digest.update(path.name.encode() + len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()[:32]
