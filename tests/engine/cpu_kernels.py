"""The environment variable that selects the library for the tests of the CPU kernels."""

from __future__ import annotations

KERNELS_VARIABLE = "TEST_KERNELS"
"""The path of a library to test instead of the installed one, for example one compiled with sanitizers."""
