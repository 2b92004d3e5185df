"""Hashes that identify the weights and the tokenizer of a checkpoint."""

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
    """Return 32 hex digits that identify the weights, at a cost that does not grow with their size.

    SHA-256 over each file's size, header (names, dtypes, shapes, offsets) and 256 evenly spaced samples of 4
    KiB, or the whole file if it is smaller than these. Two fine-tunes of a model differ nearly everywhere,
    so the samples distinguish them; a change of a few weights between two samples is not detected. File
    names do not count.
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


def fingerprint_tokenizer(folder: Path, chat_template: str | None = None) -> str:
    """Return 32 hex digits of the hash over the tokenizer's files, including the chat templates.

    Args:
        chat_template: the source of the template that replaces those of the folder.
    """
    digest = hashlib.sha256()
    for name in TOKENIZER_FILES:
        path = folder / name
        content = path.read_bytes() if path.is_file() else b""
        digest.update(len(content).to_bytes(8, "little") + content)
    # Only files that exist are hashed, so that checkpoints without them keep their fingerprint and their
    # jobs.
    for path in [folder / SPECIAL_TOKENS_MAP, *sorted((folder / TEMPLATE_FOLDER).glob("*.jinja"))]:
        if path.is_file():
            content = path.read_bytes()
            digest.update(path.name.encode() + len(content).to_bytes(8, "little") + content)
    if chat_template is not None:
        digest.update(b"chat_template" + chat_template.encode())
    return digest.hexdigest()[:32]
