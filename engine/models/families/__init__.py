"""One file for each model family: from config.json to a ModelSpec, and the names of its tensors.

A file is found by its name; nothing else knows a family. Does not know weights, backends or the scheduler.
"""
