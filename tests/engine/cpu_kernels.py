"""How the tests of the CPU kernels are told which library to test."""

from __future__ import annotations

KERNELS_VARIABLE = "TEST_KERNELS"
"""Names a library to test instead: one that was compiled with sanitizers."""
