"""The checks of ``pagefleet doctor`` that work without the engine: process, Redis server and fleet.

Each check is a small function whose findings name the problem and its fix. The checks of the engine are in
``pagefleet.workers.doctor`` and found through the entry points ``pagefleet.doctor``.
"""
