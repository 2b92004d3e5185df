"""Chaos and soak: real processes, real faults, and an exact comparison with a calm run.

Not part of the wheel: ``python -m ops.chaos`` and ``python -m ops.chaos.soak`` from the repository's root.
"""
