"""Fixtures of the workers' tests; the servers and stacks shared by all tests are one folder up."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
