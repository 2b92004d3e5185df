"""Converts older tokenizers with transformers, which only this module imports.

    python -m pagefleet.engine.loading.convert <folder> <source folder>

tokenizer_folder.py runs it as a process. The target folder exists and is empty.
"""

from __future__ import annotations

import sys
from pathlib import Path

from transformers import AutoTokenizer


def convert_tokenizer(source: Path, target: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and, if there is one, the chat template."""
    tokenizer = AutoTokenizer.from_pretrained(str(source), use_fast=True, trust_remote_code=False)
    tokenizer.save_pretrained(target)


if __name__ == "__main__":
    convert_tokenizer(Path(sys.argv[2]), Path(sys.argv[1]))
