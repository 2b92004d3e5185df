"""``python -m ops.compatibility``: write docs/compatibility.md."""

from __future__ import annotations

from ops.compatibility.page import PAGE, page

if __name__ == "__main__":
    PAGE.write_text(page())
