"""A stack on one machine: an embedded Redis server and child processes for workers, gateway and Flower.

Does not know jobs or the engine.
"""
