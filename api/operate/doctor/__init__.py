"""The checks of ``pagefleet doctor`` that need no engine: this process, the Redis server and the fleet on it.

Each check is a small function whose findings name the problem and its fix. The checks of the engine are in
``pagefleet.workers.doctor`` and found through the entry points ``pagefleet.doctor``.
"""
