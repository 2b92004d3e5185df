"""Chaos and soak: real processes, real faults, and a comparison with a calm run that forgives nothing.

Not part of the wheel: ``python -m ops.chaos`` and ``python -m ops.chaos.soak`` from the repository's root.
"""
