"""``python -m ops.language [PATH ...]``: 1 if a pattern is found."""

from __future__ import annotations

import sys

from ops.language.check import check, files_of

if __name__ == "__main__":
    found = [hit for path in files_of(sys.argv[1:]) for hit in check(path)]
    for hit in found:
        print(hit)
    print(f"{len(found)} found", file=sys.stderr)
    sys.exit(bool(found))
