from __future__ import annotations

import sys
from pathlib import Path

# The suite under test is no package of the wheel: it is imported from the repository's root.
sys.path.insert(0, str(Path(__file__).parents[2]))
