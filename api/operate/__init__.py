"""Tools for operators: metrics exporter, dead letters, ``top``, ``doctor`` and Flower.

Depends on the job store and the broker. It does not know the gateway or the engine.
"""
